"""httpx2 as an application itself uses it."""

import json

import httpx2 as http
from weather import ORIGIN

URL = f"{ORIGIN}/v1/chat/completions"
client = http.Client()
async_client = http.AsyncClient()


def asked(prompt, **more):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}


def content(response):
    return response.raise_for_status().json()["choices"][0]["message"]["content"]


def joined(lines):
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def chat(prompt):
    return content(client.post(URL, json=asked(prompt)))


async def chat_async(prompt):
    return content(await async_client.post(URL, json=asked(prompt)))


def chat_streamed(prompt):
    with client.stream("POST", URL, json=asked(prompt, stream=True)) as response:
        response.raise_for_status()
        return joined(response.iter_lines())


async def chat_async_streamed(prompt):
    async with async_client.stream("POST", URL, json=asked(prompt, stream=True)) as response:
        response.raise_for_status()
        return joined([line async for line in response.aiter_lines()])
