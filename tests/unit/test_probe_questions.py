"""What `llm-determinism probe` asks: reading prompts, conversations and parameters, and the published figures."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llm_determinism.commands import probe
from pytest_llm_determinism.commands.question import PUBLISHED, STORY, labels, parameters, read
from pytest_llm_determinism.report.published import conditions
from pytest_llm_determinism.settings import TABLE, SettingError, Settings, Value, defaults


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(*prompts: str, **given: Any) -> argparse.Namespace:
    unset = dict.fromkeys(("prompt_file", "messages", "system", "param", "completions_model"))
    return argparse.Namespace(**{**unset, "prompt": list(prompts), "api": "chat", "max_tokens": 128, **given})


def test_nothing_given_asks_the_published_question() -> None:
    assert read(options()) == [PUBLISHED]


def test_a_system_message_goes_with_each_prompt() -> None:
    first, second = read(options("One?", "Two?", system="Be brief."))

    assert first.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    assert second.prompt == "[System: Be brief.]\n\nUser: Two?\n\nAI:"
    assert read(options(system="Be brief."))[0].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": STORY},
    ]


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"Where?\n", "Where?"),
        (b"Where?\r\n", "Where?"),
        (b"\xef\xbb\xbfWhere?\n\n", "Where?\n"),
        ("  Où ?  ".encode(), "  Où ?  "),
    ],
)
def test_a_prompt_file_is_asked_as_it_is_but_for_its_last_line_end(content: bytes, prompt: str) -> None:
    Path("prompt.txt").write_bytes(content)

    assert [question.messages for question in read(options("First?", prompt_file=["prompt.txt"]))] == ["First?", prompt]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Où ?\n".encode())))

    assert read(options(prompt_file=["-"]))[0].messages == "Où ?"


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "Book it."}, {"type": "image_url", "image_url": {}}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "tool_call_id": "1", "content": ""},
]


def test_a_conversation_is_asked_as_it_is_and_called_by_its_last_text() -> None:
    Path("talk.json").write_text(json.dumps(CONVERSATION))

    (question,) = read(options(messages=["talk.json"]))

    assert question.messages == CONVERSATION
    assert (question.text, question.about, question.prompt) == ("Book it.", "3 messages of talk.json", None)


BAD_MESSAGES = {
    '{"messages": []}': "it is an object, whose messages are wanted alone",
    '"hi"': "it is a text",
    "3": "it is a number",
    "null": "it is null",
    "[]": "it has no message",
    '["hi"]': "message 1 is a text",
    '[{"content": "hi"}]': "message 1 has no role",
    '[{"role": "user", "content": "a"}, {"role": "user", "content": 3}]': "the content of message 2 is a number",
    '[{"role": "user", "content": "\\ud800"}]': (
        "it has what no request can carry: NaN, Infinity, or half of a surrogate pair"
    ),
    '[{"role": "user", "content": "a", "weight": NaN}]': (
        "it has what no request can carry: NaN, Infinity, or half of a surrogate pair"
    ),
}


@pytest.mark.parametrize("content", BAD_MESSAGES)
def test_messages_that_are_none_are_refused_with_what_is_wrong(content: str) -> None:
    Path("talk.json").write_text(content)

    with pytest.raises(SettingError) as refused:
        read(options(messages=["talk.json"]))

    assert str(refused.value) == (
        f"talk.json (from --messages): {BAD_MESSAGES[content]}; write a list of messages, such as"
        ' [{"role": "user", "content": "…"}]'
    )


def test_what_is_no_message_is_given_to_the_responses_api_only() -> None:
    Path("talk.json").write_text('[{"type": "function_call_output", "call_id": "1", "output": "7"}]')

    assert read(options(messages=["talk.json"], api="responses"))[0].text == "talk.json"
    with pytest.raises(SettingError, match="message 1 has no role;"):
        read(options(messages=["talk.json"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (options("Hi", " "), "the prompt (from PROMPT) is empty; write one, or leave it out"),
        (options("Hi", "Hi"), "“Hi” is asked twice; raise --runs or --attempts to ask it more"),
        (options("a\udcff"), "the prompt (from PROMPT) is no text in UTF-8; write it in UTF-8"),
        (options(system=""), "the system message (from --system) is empty; write one, or leave it out"),
        (
            options(system="x", messages=["talk.json"]),
            "--system goes with prompts; put the system message into the file of --messages",
        ),
        (
            options(messages=["talk.json"], api="completions"),
            "--api completions continues a text and cannot be asked --messages; write a prompt, or leave it out",
        ),
        (
            options(messages=["talk.json"], completions_model=["m"]),
            "--completions-model continues a text and cannot be asked --messages; write a prompt, or leave it out",
        ),
        (options(prompt_file=["none.txt"]), "none.txt (from --prompt-file) cannot be read: No such file or directory"),
        (options(prompt_file=["."]), ". (from --prompt-file) cannot be read: Is a directory"),
        (
            options(prompt_file=["latin.txt"]),
            "latin.txt (from --prompt-file) is no text in UTF-8: byte 1 is not; save it so",
        ),
        (
            options(prompt_file=["empty.txt"]),
            "the prompt in empty.txt (from --prompt-file) is empty; write one, or leave",
        ),
        (options(messages=["empty.txt"]), "empty.txt (from --messages) is no JSON: Expecting value: line 2 column 1"),
        (options(messages=["deep.json"]), "deep.json (from --messages) is nested too deep"),
    ],
)
def test_what_cannot_be_asked_is_said(given: argparse.Namespace, message: str) -> None:
    Path("latin.txt").write_bytes("aé".encode("latin-1"))
    Path("empty.txt").write_text("\n")
    Path("deep.json").write_text("[" * 100_000)

    with pytest.raises(SettingError) as refused:
        read(given)

    assert str(refused.value).startswith(message)


def test_questions_are_told_apart_by_how_they_begin() -> None:
    long = "A question that begins like another one, and goes on: "

    assert labels(read(options("One?"))) == [""]
    assert labels(read(options("One\n?", "\x1b[2J", long + "1", long + "2"))) == [
        r"[One\n?]",
        r"[\x1b[2J]",
        "[A question that begins like ano… 1]",
        "[A question that begins like ano… 2]",
    ]


def test_parameters_are_json_or_else_text() -> None:
    given = parameters(options(param=["seed=7", "stop=END", 'logit_bias={"50256": -100}', "logprobs=true"]))

    assert given == {"seed": 7, "stop": "END", "logit_bias": {"50256": -100}, "logprobs": True}
    assert parameters(options(max_tokens=None, param=["max_completion_tokens=5"])) == {"max_completion_tokens": 5}


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (
            "seed",
            "seed (from --param): write NAME=JSON, such as seed=7, logprobs=true or stop=END (JSON, else a string)",
        ),
        ("top_p=NaN", "top_p=NaN (from --param): write NAME=JSON, such as"),
        ("seed=1 seed=2", "seed=1 seed=2 (from --param): seed is given twice"),
        (
            "response_format.type=json_object",
            (
                'response_format.type="json_object" (from --param): write the field and the whole of its value, such as'
                ' \'response_format={"type": "json_object"}\''
            ),
        ),
        ("max_tokens=3", "max_tokens=3 (from --param): set it with --max-tokens"),
        ("max_output_tokens=3", "max_output_tokens=3 (from --param): set it with --max-tokens"),
        (
            "max_completion_tokens=3",
            ("max_completion_tokens=3 (from --param): goes with --max-tokens none, which leaves the other limit out"),
        ),
        ("temperature=1", "temperature=1 (from --param): set it with --temperature"),
        ("model=m", 'model="m" (from --param): name it with --model or --completions-model'),
        (
            "messages=[]",
            ("messages=[] (from --param): write the question as PROMPT, --prompt-file FILE or --messages FILE"),
        ),
        ("stream=true", "stream=true (from --param): leave it out: a probe reads whole answers"),
    ],
)
def test_a_parameter_that_cannot_be_set_is_refused_with_what_to_do(param: str, message: str) -> None:
    with pytest.raises(SettingError) as refused:
        parameters(options(param=param.split(" ")))

    assert str(refused.value).startswith(message)


def settings(**values: Any) -> Settings:
    return Settings(defaults() | {name: Value(value, "cli", f"--{name}") for name, value in values.items()})


def test_the_conditions_say_where_ones_own_are_others() -> None:
    alike = conditions(settings(attempts=3, load=("solo",)), 128, True)
    others = conditions(settings(runs=10, temperature=None), None, False)

    assert alike[2] == "  here: the same, but for that logit_bias"
    assert others[2] == (
        "  here: runs=10 (--runs), attempts=1 (default), load=burst (default), temperature=none (--temperature),"
        " max_tokens=none (--max-tokens), another question"
    )


def test_each_setting_but_the_gate_s_switch_is_an_option_in_a_group_of_its_own() -> None:
    grouped = [setting.name for setting in probe._SETTINGS]
    assert sorted(grouped) == sorted(TABLE.keys() - {"gate"})
