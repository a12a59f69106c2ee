"""What ``llm-determinism probe`` asks: prompts as text or in files, whole conversations, and what goes along."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.settings import Override, SettingError, json_pairs

if TYPE_CHECKING:
    from pytest_llm_determinism.llm import Messages

STORY = "Write a unique, surprising, extremely randomized story with highly unpredictable changes of events."
"""What the best-known experiment asked: https://152334h.github.io/blog/non-determinism-in-gpt-4/"""

STDIN = "-"

LABEL_WIDTH = 32
"""Columns of a question in node ids."""

_PARAM_RULE = "write NAME=JSON, such as seed=7, logprobs=true or stop=END (JSON, else a string)"

_QUESTION = "write the question as PROMPT, --prompt-file FILE or --messages FILE"

# What is set in another way, so that a request has each value once.
_OTHERWISE = {
    "model": "name it with --model or --completions-model",
    "messages": _QUESTION,
    "prompt": _QUESTION,
    "input": _QUESTION,
    "temperature": "set it with --temperature",
    "max_tokens": "set it with --max-tokens",
    "max_output_tokens": "set it with --max-tokens",
    "stream": "leave it out: a probe reads whole answers",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask, of whichever model.

    Attributes:
        text: the prompt, or the last message of a conversation, to tell questions apart.
        messages: as the chat and responses APIs are asked.
        prompt: as the completions API is asked; None where it cannot be.
        about: what else a reader should know of it, in a few words.
    """

    text: str
    messages: str | Messages
    prompt: str | None
    about: str = ""


PUBLISHED = Question(
    STORY,
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": STORY}],
    f"[System: You are a helpful assistant]\n\nUser: {STORY}\n\nAI:",
)


def read(options: argparse.Namespace) -> list[Question]:
    """The questions that the options name; the published one if they name none.

    Raises:
        SettingError: a question cannot be read, is empty or is there twice, or one cannot be asked as it should be.
    """
    if options.messages and (options.api == "completions" or options.completions_model):
        flag = "--completions-model" if options.completions_model else "--api completions"
        raise SettingError(f"{flag} continues a text and cannot be asked --messages; write a prompt, or leave it out")
    system = options.system
    if system is not None:
        _check_text(system, "--system", "the system message")
        if options.messages:
            raise SettingError("--system goes with prompts; put the system message into the file of --messages")
    elif not (options.prompt or options.prompt_file or options.messages):
        return [PUBLISHED]
    prompts = [_check_text(prompt, "PROMPT", "the prompt") for prompt in options.prompt]
    prompts += [_prompt_in(file) for file in options.prompt_file or ()]
    if not prompts and not options.messages:
        prompts = [STORY]
    questions = [_of_text(prompt, system) for prompt in prompts]
    questions += [_conversation_in(file, options.api) for file in options.messages or ()]
    for index, question in enumerate(questions):
        if question.messages in [earlier.messages for earlier in questions[:index]]:
            raise SettingError(f"“{excerpt(question.text)}” is asked twice; raise --runs or --attempts to ask it more")
    return questions


def labels(questions: Sequence[Question]) -> list[str]:
    """A short name for each question, in brackets after a model's; empty where there is only one."""
    if len(questions) == 1:
        return [""]
    short = [excerpt(question.text, width=LABEL_WIDTH) for question in questions]
    times = Counter(short)
    seen: Counter[str] = Counter()
    names = []
    for text in short:
        seen[text] += 1
        names.append(f"[{text}]" if times[text] == 1 else f"[{text} {seen[text]}]")
    return names


def parameters(options: argparse.Namespace) -> Override:
    """Values for the request itself, by name.

    Raises:
        SettingError: one cannot be used, or is set in another way.
    """
    if not options.param:
        return Override()
    try:
        given = json_pairs(options.param, _PARAM_RULE)
    except ValueError as error:
        raise SettingError(f"{' '.join(options.param)} (from --param): {error}") from None
    for name, value in given.items():
        written = f"{name}={json.dumps(value, ensure_ascii=False)} (from --param)"
        if "." in name:
            raise SettingError(f"{written}: write the field and the whole of its value, such as {_nested(name, value)}")
        if name in _OTHERWISE:
            raise SettingError(f"{written}: {_OTHERWISE[name]}")
        if name == "max_completion_tokens" and options.max_tokens is not None:
            raise SettingError(f"{written}: goes with --max-tokens none, which leaves the other limit out")
    return given


def _nested(path: str, value: object) -> str:
    first, *rest = path.split(".")
    for name in reversed(rest):
        value = {name: value}
    return f"'{first}={json.dumps(value, ensure_ascii=False)}'"


def _check_text(text: str, where: str, what: str) -> str:
    if not text.strip():
        raise SettingError(f"{what} (from {where}) is empty; write one, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingError(f"{what} (from {where}) is no text in UTF-8; write it in UTF-8") from None
    return text


def _of_text(prompt: str, system: str | None) -> Question:
    if system is None:
        return Question(prompt, prompt, prompt)
    return Question(
        prompt,
        [{"role": "system", "content": system}, {"role": "user", "content": prompt}],
        f"[System: {system}]\n\nUser: {prompt}\n\nAI:",
        f"system “{excerpt(system)}”",
    )


def _contents(file: str, flag: str) -> str:
    """The text of a file, without a mark of its byte order.

    Raises:
        SettingError: it cannot be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise SettingError(f"{file} (from {flag}) cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{file} (from {flag}) is no text in UTF-8: byte {error.start} is not; save it so") from None


def _prompt_in(file: str) -> str:
    # An editor's last line end is not the prompt's.
    text = _contents(file, "--prompt-file").removesuffix("\n").removesuffix("\r")
    return _check_text(text, "--prompt-file", f"the prompt in {file}")


def _conversation_in(file: str, api: str) -> Question:
    text = _contents(file, "--messages")
    try:
        messages: Any = json.loads(text)
        wrong = _wrong_with(messages, api)
    except RecursionError:
        raise SettingError(f"{file} (from --messages) is nested too deep") from None
    except ValueError as error:
        raise SettingError(f"{file} (from --messages) is no JSON: {error}") from None
    if wrong is not None:
        example = '[{"role": "user", "content": "…"}]'
        raise SettingError(f"{file} (from --messages): {wrong}; write a list of messages, such as {example}")
    last = next(filter(None, map(_text_of, reversed(messages))), file)
    about = f"{len(messages)} message{'' if len(messages) == 1 else 's'} of {excerpt(file)}"
    return Question(last, messages, None, about)


def _wrong_with(messages: Any, api: str) -> str | None:
    if not isinstance(messages, list):
        hint = ", whose messages are wanted alone" if isinstance(messages, dict) and "messages" in messages else ""
        return f"it is {_kind(messages)}{hint}"
    if not messages:
        return "it has no message"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            return f"message {number} is {_kind(message)}"
        # What the responses API is given beside messages, such as a tool's result, has a type in place of a role.
        named = ("role", "type") if api == "responses" else ("role",)
        if not any(isinstance(message.get(name), str) for name in named):
            return f"message {number} has no {' or '.join(named)}"
        if not isinstance(message.get("content"), (str, list, type(None))):
            return f"the content of message {number} is {_kind(message['content'])}"
    try:
        json.dumps(messages, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return "it has what no request can carry: NaN, Infinity, or half of a surrogate pair"
    return None


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return " ".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    ).strip()


def _kind(value: object) -> str:
    match value:
        case str():
            return "a text"
        case dict():
            return "an object"
        case list():
            return "a list"
        case None | True | False:
            return json.dumps(value)
        case _:
            return "a number"
