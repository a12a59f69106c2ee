"""The client for Bedrock of the anthropic SDK."""

import anthropic
from weather import ORIGIN

options = {
    "base_url": ORIGIN,
    "aws_access_key": "an-access-key",
    "aws_secret_key": "a-secret-key",
    "aws_region": "us-east-1",
    "max_retries": 0,
}
client = anthropic.AnthropicBedrock(**options)
async_client = anthropic.AsyncAnthropicBedrock(**options)


def asked(prompt):
    return {"model": "anthropic.m-1:0", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}


def invoke(prompt):
    return client.messages.create(**asked(prompt)).content[0].text


async def invoke_async(prompt):
    return (await async_client.messages.create(**asked(prompt))).content[0].text


def invoke_streamed(prompt):
    with client.messages.stream(**asked(prompt)) as stream:
        return "".join(stream.text_stream)


async def invoke_async_streamed(prompt):
    async with async_client.messages.stream(**asked(prompt)) as stream:
        return "".join([piece async for piece in stream.text_stream])
