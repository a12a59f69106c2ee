"""llama-index-llms-openai."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI
from weather import KEY, ORIGIN

model = OpenAI(model="gpt-4o", api_base=f"{ORIGIN}/v1", api_key=KEY, max_retries=0, temperature=0)


def said(prompt):
    return [ChatMessage(role="user", content=prompt)]


def chat(prompt):
    return model.chat(said(prompt)).message.content


async def chat_async(prompt):
    return (await model.achat(said(prompt))).message.content


def chat_streamed(prompt):
    return "".join(part.delta or "" for part in model.stream_chat(said(prompt)))


async def chat_async_streamed(prompt):
    parts = await model.astream_chat(said(prompt))
    return "".join([part.delta or "" async for part in parts])
