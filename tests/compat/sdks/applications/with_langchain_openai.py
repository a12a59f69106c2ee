"""langchain-openai."""

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from weather import KEY, ORIGIN, weather

options = {"model": "m", "base_url": f"{ORIGIN}/v1", "api_key": KEY, "max_retries": 0, "temperature": 0}
model = ChatOpenAI(**options)
responding = ChatOpenAI(**options, use_responses_api=True)


def chat(prompt):
    return model.invoke(prompt).text


async def chat_async(prompt):
    return (await model.ainvoke(prompt)).text


def chat_streamed(prompt):
    return "".join(chunk.text for chunk in model.stream(prompt))


async def chat_async_streamed(prompt):
    return "".join([chunk.text async for chunk in model.astream(prompt)])


def chat_tools(prompt):
    look = tool(weather)
    asked = model.bind_tools([look])
    messages = [HumanMessage(prompt)]
    while True:
        message = asked.invoke(messages)
        if not message.tool_calls:
            return message.text
        results = [ToolMessage(look.invoke(call["args"]), tool_call_id=call["id"]) for call in message.tool_calls]
        messages = [*messages, message, *results]


def responses(prompt):
    return responding.invoke(prompt).text


async def responses_async_streamed(prompt):
    return "".join([chunk.text async for chunk in responding.astream(prompt)])
