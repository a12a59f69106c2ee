"""The ollama SDK."""

import ollama
from weather import ORIGIN, weather

client = ollama.Client(host=ORIGIN)
async_client = ollama.AsyncClient(host=ORIGIN)


def asked(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "options": {"temperature": 0}}


def chat(prompt):
    return client.chat(**asked(prompt)).message.content


async def chat_async(prompt):
    return (await async_client.chat(**asked(prompt))).message.content


def chat_streamed(prompt):
    return "".join(part.message.content for part in client.chat(**asked(prompt), stream=True))


async def chat_async_streamed(prompt):
    parts = await async_client.chat(**asked(prompt), stream=True)
    return "".join([part.message.content async for part in parts])


def chat_tools(prompt):
    request = {**asked(prompt), "tools": [weather]}
    while True:
        message = client.chat(**request).message
        if not message.tool_calls:
            return message.content
        results = [
            {"role": "tool", "tool_name": call.function.name, "content": weather(**call.function.arguments)}
            for call in message.tool_calls
        ]
        request["messages"] = [*request["messages"], message, *results]


def generate(prompt):
    return client.generate(model="m", prompt=prompt).response


def generate_streamed(prompt):
    return "".join(part.response for part in client.generate(model="m", prompt=prompt, stream=True))
