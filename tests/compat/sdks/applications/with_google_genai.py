"""Google's Gen AI SDK."""

from google import genai
from google.genai import types
from weather import KEY, ORIGIN, weather

options = types.HttpOptions(base_url=ORIGIN, retry_options=types.HttpRetryOptions(attempts=1))
client = genai.Client(api_key=KEY, http_options=options)


def generate(prompt):
    return client.models.generate_content(model="m", contents=prompt).text


async def generate_async(prompt):
    return (await client.aio.models.generate_content(model="m", contents=prompt)).text


def generate_streamed(prompt):
    chunks = client.models.generate_content_stream(model="m", contents=prompt)
    return "".join(chunk.text or "" for chunk in chunks)


async def generate_async_streamed(prompt):
    chunks = await client.aio.models.generate_content_stream(model="m", contents=prompt)
    return "".join([chunk.text or "" async for chunk in chunks])


def generate_tools(prompt):
    config = types.GenerateContentConfig(tools=[weather], temperature=0)
    return client.models.generate_content(model="m", contents=prompt, config=config).text
