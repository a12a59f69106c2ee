"""The anthropic SDK."""

import anthropic
from weather import KEY, ORIGIN, PARAMETERS, weather

options = {"base_url": ORIGIN, "api_key": KEY, "max_retries": 0}
client = anthropic.Anthropic(**options)
async_client = anthropic.AsyncAnthropic(**options)


def asked(prompt):
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}


def messages(prompt):
    return client.messages.create(**asked(prompt)).content[0].text


async def messages_async(prompt):
    return (await async_client.messages.create(**asked(prompt))).content[0].text


def messages_streamed(prompt):
    with client.messages.stream(**asked(prompt)) as stream:
        return "".join(stream.text_stream)


async def messages_async_streamed(prompt):
    async with async_client.messages.stream(**asked(prompt)) as stream:
        return "".join([piece async for piece in stream.text_stream])


def messages_tools(prompt):
    tool = {"name": "weather", "description": weather.__doc__, "input_schema": PARAMETERS}
    request = {**asked(prompt), "tools": [tool]}
    while True:
        message = client.messages.create(**request)
        if message.stop_reason != "tool_use":
            return message.content[0].text
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": weather(**block.input)}
            for block in message.content
            if block.type == "tool_use"
        ]
        turns = [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        request["messages"] = request["messages"] + turns
