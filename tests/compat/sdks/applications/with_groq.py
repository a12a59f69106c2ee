"""The groq SDK."""

import groq
from weather import KEY, ORIGIN

options = {"base_url": ORIGIN, "api_key": KEY, "max_retries": 0}
client = groq.Groq(**options)
async_client = groq.AsyncGroq(**options)


def asked(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}


def chat(prompt):
    return client.chat.completions.create(**asked(prompt)).choices[0].message.content


async def chat_async(prompt):
    return (await async_client.chat.completions.create(**asked(prompt))).choices[0].message.content


def chat_streamed(prompt):
    chunks = client.chat.completions.create(**asked(prompt), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def chat_async_streamed(prompt):
    chunks = await async_client.chat.completions.create(**asked(prompt), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
