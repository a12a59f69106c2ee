"""langchain-google-genai."""

from langchain_google_genai import ChatGoogleGenerativeAI
from weather import KEY, ORIGIN

model = ChatGoogleGenerativeAI(model="m", base_url=ORIGIN, api_key=KEY, max_retries=1, temperature=0)


def generate(prompt):
    return model.invoke(prompt).text


async def generate_async(prompt):
    return (await model.ainvoke(prompt)).text


def generate_streamed(prompt):
    return "".join(chunk.text for chunk in model.stream(prompt))


async def generate_async_streamed(prompt):
    return "".join([chunk.text async for chunk in model.astream(prompt)])
