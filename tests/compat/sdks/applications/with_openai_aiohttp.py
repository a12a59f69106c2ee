"""The openai SDK over aiohttp instead of httpx."""

import openai
from weather import KEY, ORIGIN


def client():
    return openai.AsyncOpenAI(
        base_url=f"{ORIGIN}/v1", api_key=KEY, max_retries=0, http_client=openai.DefaultAioHttpClient()
    )


def asked(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}


async def chat_async(prompt):
    async with client() as asking:
        return (await asking.chat.completions.create(**asked(prompt))).choices[0].message.content


async def chat_async_streamed(prompt):
    async with client() as asking:
        chunks = await asking.chat.completions.create(**asked(prompt), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
