"""The openai SDK, version 1, 2 and 3."""

import json

import openai
from weather import FUNCTION, KEY, ORIGIN, text_of, weather

options = {"base_url": f"{ORIGIN}/v1", "api_key": KEY, "max_retries": 0}
client = openai.OpenAI(**options)
async_client = openai.AsyncOpenAI(**options)


def said(prompt):
    return [{"role": "user", "content": prompt}]


def chat(prompt):
    reply = client.chat.completions.create(model="m", messages=said(prompt), temperature=0)
    return reply.choices[0].message.content


async def chat_async(prompt):
    reply = await async_client.chat.completions.create(model="m", messages=said(prompt), temperature=0)
    return reply.choices[0].message.content


def chat_streamed(prompt):
    chunks = client.chat.completions.create(model="m", messages=said(prompt), temperature=0, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def chat_async_streamed(prompt):
    chunks = await async_client.chat.completions.create(model="m", messages=said(prompt), temperature=0, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


def chat_tools(prompt):
    messages = said(prompt)
    asked = {"model": "m", "tools": [{"type": "function", "function": FUNCTION}], "temperature": 0}
    while True:
        message = client.chat.completions.create(messages=messages, **asked).choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message)
        for call in message.tool_calls:
            found = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": found})


def completions(prompt):
    return client.completions.create(model="m", prompt=prompt, temperature=0).choices[0].text


def completions_streamed(prompt):
    chunks = client.completions.create(model="m", prompt=prompt, temperature=0, stream=True)
    return "".join(chunk.choices[0].text for chunk in chunks)


def responses(prompt):
    return client.responses.create(model="m", input=prompt, temperature=0).output_text


async def responses_async(prompt):
    return (await async_client.responses.create(model="m", input=prompt, temperature=0)).output_text


def responses_streamed(prompt):
    with client.responses.stream(model="m", input=prompt, temperature=0) as stream:
        return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


async def responses_async_streamed(prompt):
    events = await async_client.responses.create(model="m", input=prompt, temperature=0, stream=True)
    return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])


def responses_tools(prompt):
    items = said(prompt)
    asked = {"model": "m", "tools": [{"type": "function", "strict": True, **FUNCTION}], "temperature": 0}
    while True:
        response = client.responses.create(input=items, **asked)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return response.output_text
        items += response.output
        for call in calls:
            found = weather(**json.loads(call.arguments))
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": found})


def embeddings(prompt):
    return text_of(client.embeddings.create(model="m", input=prompt).data[0].embedding)


async def embeddings_async(prompt):
    return text_of((await async_client.embeddings.create(model="m", input=prompt)).data[0].embedding)
