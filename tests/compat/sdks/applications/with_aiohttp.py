"""aiohttp as an application itself uses it."""

import json

import aiohttp
from weather import ORIGIN

URL = f"{ORIGIN}/v1/chat/completions"


def asked(prompt, **more):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}


async def chat_async(prompt):
    async with aiohttp.ClientSession() as session, session.post(URL, json=asked(prompt)) as response:
        response.raise_for_status()
        return (await response.json())["choices"][0]["message"]["content"]


async def chat_async_streamed(prompt):
    request = asked(prompt, stream=True)
    async with aiohttp.ClientSession() as session, session.post(URL, json=request) as response:
        response.raise_for_status()
        lines = [line.decode().strip().removeprefix("data: ") async for line in response.content]
    chunks = [json.loads(line) for line in lines if line and line != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
