"""The mistralai SDK."""

import json

from mistralai.client import Mistral
from weather import FUNCTION, KEY, ORIGIN, text_of, weather

client = Mistral(api_key=KEY, server_url=ORIGIN)


def asked(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}


def chat(prompt):
    return client.chat.complete(**asked(prompt)).choices[0].message.content


async def chat_async(prompt):
    return (await client.chat.complete_async(**asked(prompt))).choices[0].message.content


def chat_streamed(prompt):
    with client.chat.stream(**asked(prompt)) as events:
        return "".join(event.data.choices[0].delta.content or "" for event in events)


async def chat_async_streamed(prompt):
    events = await client.chat.stream_async(**asked(prompt))
    return "".join([event.data.choices[0].delta.content or "" async for event in events])


def chat_tools(prompt):
    request = {**asked(prompt), "tools": [{"type": "function", "function": FUNCTION}]}
    while True:
        message = client.chat.complete(**request).choices[0].message
        if not message.tool_calls:
            return message.content
        results = [
            {
                "role": "tool",
                "name": call.function.name,
                "tool_call_id": call.id,
                "content": weather(**json.loads(call.function.arguments)),
            }
            for call in message.tool_calls
        ]
        request["messages"] = [*request["messages"], message, *results]


def embeddings(prompt):
    return text_of(client.embeddings.create(model="m", inputs=[prompt]).data[0].embedding)
