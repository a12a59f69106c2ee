"""The inference clients of huggingface_hub."""

from huggingface_hub import AsyncInferenceClient, InferenceClient
from weather import KEY, ORIGIN

client = InferenceClient(base_url=f"{ORIGIN}/v1", api_key=KEY)
endpoint = InferenceClient(f"{ORIGIN}/generation", token=KEY)


def said(prompt):
    return [{"role": "user", "content": prompt}]


def chat(prompt):
    return client.chat_completion(said(prompt), model="m", temperature=0).choices[0].message.content


async def chat_async(prompt):
    async with AsyncInferenceClient(base_url=f"{ORIGIN}/v1", api_key=KEY) as client:
        return (await client.chat_completion(said(prompt), model="m", temperature=0)).choices[0].message.content


def chat_streamed(prompt):
    chunks = client.chat_completion(said(prompt), model="m", temperature=0, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def generation(prompt):
    return endpoint.text_generation(prompt, max_new_tokens=20)


async def generation_async(prompt):
    async with AsyncInferenceClient(f"{ORIGIN}/generation", token=KEY) as endpoint:
        return await endpoint.text_generation(prompt, max_new_tokens=20)


def generation_streamed(prompt):
    return "".join(endpoint.text_generation(prompt, max_new_tokens=20, stream=True))
