"""langchain-anthropic."""

from langchain_anthropic import ChatAnthropic
from weather import KEY, ORIGIN

model = ChatAnthropic(model="m", base_url=ORIGIN, api_key=KEY, max_retries=0, temperature=0, max_tokens=100)


def messages(prompt):
    return model.invoke(prompt).text


async def messages_async(prompt):
    return (await model.ainvoke(prompt)).text


def messages_streamed(prompt):
    return "".join(chunk.text for chunk in model.stream(prompt))


async def messages_async_streamed(prompt):
    return "".join([chunk.text async for chunk in model.astream(prompt)])
