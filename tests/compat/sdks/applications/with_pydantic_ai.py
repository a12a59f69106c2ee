"""pydantic-ai, with the models of two providers."""

import anthropic
import openai
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from weather import KEY, ORIGIN, weather


def agents(**more):
    by_openai = openai.AsyncOpenAI(base_url=f"{ORIGIN}/v1", api_key=KEY, max_retries=0)
    by_anthropic = anthropic.AsyncAnthropic(base_url=ORIGIN, api_key=KEY, max_retries=0)
    models = {
        "chat": OpenAIChatModel("m", provider=OpenAIProvider(openai_client=by_openai)),
        "responses": OpenAIResponsesModel("m", provider=OpenAIProvider(openai_client=by_openai)),
        "messages": AnthropicModel("m", provider=AnthropicProvider(anthropic_client=by_anthropic)),
    }
    return {name: Agent(model, **more) for name, model in models.items()}


# Clients stay with the event loop that they were first used in.
in_sync, in_async, with_tool = agents(), agents(), agents(tools=[weather])


async def streamed(agent, prompt):
    async with agent.run_stream(prompt) as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])


def chat(prompt):
    return in_sync["chat"].run_sync(prompt).output


async def chat_async(prompt):
    return (await in_async["chat"].run(prompt)).output


async def chat_async_streamed(prompt):
    return await streamed(in_async["chat"], prompt)


def chat_tools(prompt):
    return with_tool["chat"].run_sync(prompt).output


def responses(prompt):
    return in_sync["responses"].run_sync(prompt).output


async def responses_async_streamed(prompt):
    return await streamed(in_async["responses"], prompt)


def responses_tools(prompt):
    return with_tool["responses"].run_sync(prompt).output


def messages(prompt):
    return in_sync["messages"].run_sync(prompt).output


async def messages_async_streamed(prompt):
    return await streamed(in_async["messages"], prompt)


def messages_tools(prompt):
    return with_tool["messages"].run_sync(prompt).output
