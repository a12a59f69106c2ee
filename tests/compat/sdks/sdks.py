"""Which SDKs are tried, and in which ways: the rows of docs/compatibility.md.

A way is the name of a function in the SDK's application: the API first, then how it is asked, such as
``chat_async_streamed``. ``_tools`` is an agent of two steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sdk:
    """One SDK.

    Attributes:
        name: the distribution on PyPI, with its extras.
        application: the module in ``applications/`` that asks with it.
        ways: names of the application's functions.
    """

    name: str
    application: str
    ways: tuple[str, ...]


_EACH_WAY = ("", "_async", "_streamed", "_async_streamed")


def _each(api: str, *more: str) -> tuple[str, ...]:
    """The four ways of an API, and more."""
    return (*(api + way for way in _EACH_WAY), *more)


SDKS = (
    Sdk(
        "openai",
        "with_openai",
        (
            *_each("chat", "chat_tools"),
            *("completions", "completions_streamed"),
            *_each("responses", "responses_tools"),
            *("embeddings", "embeddings_async"),
        ),
    ),
    Sdk("openai[aiohttp]", "with_openai_aiohttp", ("chat_async", "chat_async_streamed")),
    Sdk("anthropic", "with_anthropic", _each("messages", "messages_tools")),
    Sdk("anthropic[bedrock]", "with_anthropic_bedrock", _each("invoke")),
    Sdk("google-genai", "with_google_genai", _each("generate", "generate_tools")),
    Sdk("mistralai", "with_mistralai", _each("chat", "chat_tools", "embeddings")),
    Sdk("cohere", "with_cohere", _each("chat", "chat_tools", "v1", "v1_streamed")),
    Sdk("groq", "with_groq", _each("chat")),
    Sdk("together", "with_together", _each("chat")),
    Sdk("ollama", "with_ollama", _each("chat", "chat_tools", "generate", "generate_streamed")),
    Sdk(
        "huggingface_hub",
        "with_huggingface_hub",
        ("chat", "chat_async", "chat_streamed", "generation", "generation_async", "generation_streamed"),
    ),
    Sdk("boto3", "with_boto3", ("converse", "converse_streamed", "converse_tools", "invoke", "invoke_streamed")),
    Sdk(
        "langchain-openai",
        "with_langchain_openai",
        _each("chat", "chat_tools", "responses", "responses_async_streamed"),
    ),
    Sdk("langchain-anthropic", "with_langchain_anthropic", _each("messages")),
    Sdk("langchain-google-genai", "with_langchain_google_genai", _each("generate")),
    Sdk("langchain-aws", "with_langchain_aws", ("converse", "converse_streamed")),
    Sdk(
        "pydantic-ai-slim[anthropic,openai]",
        "with_pydantic_ai",
        (
            *("chat", "chat_async", "chat_async_streamed", "chat_tools"),
            *("responses", "responses_async_streamed", "responses_tools"),
            *("messages", "messages_async_streamed", "messages_tools"),
        ),
    ),
    Sdk(
        "openai-agents",
        "with_openai_agents",
        (
            *("responses", "responses_async", "responses_async_streamed", "responses_tools"),
            *("chat", "chat_async_streamed", "chat_tools"),
        ),
    ),
    Sdk(
        "litellm",
        "with_litellm",
        _each("chat", "chat_tools", "messages", "messages_async_streamed", "converse", "converse_streamed"),
    ),
    Sdk("llama-index-llms-openai", "with_llama_index", _each("chat")),
    Sdk("instructor", "with_instructor", ("chat", "chat_async")),
    Sdk("dspy", "with_dspy", ("chat", "chat_async")),
    Sdk("httpx", "with_httpx", _each("chat")),
    Sdk("httpx2", "with_httpx2", _each("chat")),
    Sdk("requests", "with_requests", ("chat", "chat_streamed")),
    Sdk("aiohttp", "with_aiohttp", ("chat_async", "chat_async_streamed")),
)


GROUPS = ("clients", "frameworks")
"""SDKs that are installed together, from ``requirements-GROUP.txt``."""


def requirements(group: str) -> list[str]:
    """The names of the SDKs of a group."""
    file = Path(__file__).parent / f"requirements-{group}.txt"
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [re.split(r"[<>=!~ ;]", line, maxsplit=1)[0] for line in lines if line]
