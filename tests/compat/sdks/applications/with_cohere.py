"""The cohere SDK, both versions of its API."""

import json

import cohere
from weather import FUNCTION, KEY, ORIGIN, weather

options = {"base_url": ORIGIN, "api_key": KEY, "max_retries": 0}
client = cohere.ClientV2(**options)
async_client = cohere.AsyncClientV2(**options)
older = cohere.Client(**options)


def asked(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}


def chat(prompt):
    return client.chat(**asked(prompt)).message.content[0].text


async def chat_async(prompt):
    return (await async_client.chat(**asked(prompt))).message.content[0].text


def chat_streamed(prompt):
    events = client.chat_stream(**asked(prompt))
    return "".join(event.delta.message.content.text for event in events if event.type == "content-delta")


async def chat_async_streamed(prompt):
    events = async_client.chat_stream(**asked(prompt))
    return "".join([event.delta.message.content.text async for event in events if event.type == "content-delta"])


def chat_tools(prompt):
    request = {**asked(prompt), "tools": [{"type": "function", "function": FUNCTION}]}
    while True:
        message = client.chat(**request).message
        if not message.tool_calls:
            return message.content[0].text
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
            for call in message.tool_calls
        ]
        request["messages"] = [*request["messages"], message, *results]


def v1(prompt):
    return older.chat(model="m", message=prompt, temperature=0).text


def v1_streamed(prompt):
    events = older.chat_stream(model="m", message=prompt, temperature=0)
    return "".join(event.text for event in events if event.event_type == "text-generation")
