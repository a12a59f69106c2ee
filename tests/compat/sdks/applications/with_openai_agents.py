"""openai-agents."""

import agents
import openai
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from weather import KEY, ORIGIN, weather

agents.set_tracing_disabled(True)


def forecasters(**more):
    client = openai.AsyncOpenAI(base_url=f"{ORIGIN}/v1", api_key=KEY, max_retries=0)
    models = {
        "chat": OpenAIChatCompletionsModel(model="m", openai_client=client),
        "responses": OpenAIResponsesModel(model="m", openai_client=client),
    }
    return {name: Agent("Forecaster", model=model, **more) for name, model in models.items()}


# Clients stay with the event loop that they were first used in.
in_sync, in_async = forecasters(), forecasters()
with_tool = forecasters(tools=[agents.function_tool(weather)])


async def streamed(agent, prompt):
    events = Runner.run_streamed(agent, prompt).stream_events()
    raw = [event.data async for event in events if event.type == "raw_response_event"]
    return "".join(event.delta for event in raw if event.type == "response.output_text.delta")


def responses(prompt):
    return Runner.run_sync(in_sync["responses"], prompt).final_output


async def responses_async(prompt):
    return (await Runner.run(in_async["responses"], prompt)).final_output


async def responses_async_streamed(prompt):
    return await streamed(in_async["responses"], prompt)


def responses_tools(prompt):
    return Runner.run_sync(with_tool["responses"], prompt).final_output


def chat(prompt):
    return Runner.run_sync(in_sync["chat"], prompt).final_output


async def chat_async_streamed(prompt):
    return await streamed(in_async["chat"], prompt)


def chat_tools(prompt):
    return Runner.run_sync(with_tool["chat"], prompt).final_output
