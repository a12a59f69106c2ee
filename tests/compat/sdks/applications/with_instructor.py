"""instructor, whose answers are the arguments of a tool."""

import instructor
import openai
from pydantic import BaseModel
from weather import KEY, ORIGIN

options = {"base_url": f"{ORIGIN}/v1", "api_key": KEY, "max_retries": 0}


client = instructor.from_openai(openai.OpenAI(**options))
async_client = instructor.from_openai(openai.AsyncOpenAI(**options))


class Answer(BaseModel):
    text: str


def asked(prompt):
    messages = [{"role": "user", "content": prompt}]
    return {"model": "m", "messages": messages, "response_model": Answer, "max_retries": 0}


def chat(prompt):
    return client.chat.completions.create(**asked(prompt)).text


async def chat_async(prompt):
    return (await async_client.chat.completions.create(**asked(prompt))).text
