"""litellm, in front of three providers."""

import json
import os

from weather import FUNCTION, KEY, ORIGIN, weather

# Otherwise it asks for a list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

AMAZON = {
    "aws_bedrock_runtime_endpoint": ORIGIN,
    "aws_region_name": "us-east-1",
    "aws_access_key_id": "an-access-key",
    "aws_secret_access_key": "a-secret-key",
}


def asked(prompt, model="openai/m", base=f"{ORIGIN}/v1"):
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "api_base": base, "api_key": KEY, "max_retries": 0}


def content(reply):
    return reply.choices[0].message.content


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def chat(prompt):
    return content(litellm.completion(**asked(prompt)))


async def chat_async(prompt):
    return content(await litellm.acompletion(**asked(prompt)))


def chat_streamed(prompt):
    return joined(litellm.completion(**asked(prompt), stream=True))


async def chat_async_streamed(prompt):
    return joined([chunk async for chunk in await litellm.acompletion(**asked(prompt), stream=True)])


def chat_tools(prompt):
    request = {**asked(prompt), "tools": [{"type": "function", "function": FUNCTION}]}
    while True:
        message = litellm.completion(**request).choices[0].message
        if not message.tool_calls:
            return message.content
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
            for call in message.tool_calls
        ]
        request["messages"] = [*request["messages"], message, *results]


def messages(prompt):
    return content(litellm.completion(**asked(prompt, "anthropic/m", ORIGIN)))


async def messages_async_streamed(prompt):
    return joined(
        [chunk async for chunk in await litellm.acompletion(**asked(prompt, "anthropic/m", ORIGIN), stream=True)]
    )


def in_bedrock(prompt):
    return {"model": "bedrock/converse/anthropic.m-1:0", "messages": [{"role": "user", "content": prompt}], **AMAZON}


def converse(prompt):
    return content(litellm.completion(**in_bedrock(prompt), max_retries=0))


def converse_streamed(prompt):
    return joined(litellm.completion(**in_bedrock(prompt), max_retries=0, stream=True))
