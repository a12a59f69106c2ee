"""Each finding: where it must appear, word for word, and where it must not."""

import json
import re
from pathlib import Path

import pytest

import pytest_llm_determinism.analysis.findings
from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.findings import CODES, Finding, findings, load_sensitive
from pytest_llm_determinism.analysis.groups import group, outcomes
from pytest_llm_determinism.runs import Exchange, Run


def exchange(output, request="question", finish_reason="stop"):
    return Exchange(request, 0, output, "m", None, finish_reason, None, None)


def found(runs, bodies=None, compare="exact", api="chat completions"):
    """Code and message of what is found in runs, each given as one output or as its exchanges.

    `bodies` are request bodies by key; of a request that is not in it no more than the key is known.
    """
    made = [
        Run(index, (exchange(one),) if isinstance(one, str) else tuple(one)) if not isinstance(one, Run) else one
        for index, one in enumerate(runs)
    ]
    requests = {key: json.dumps({"url": "u", "api": api, "body": body}) for key, body in (bodies or {}).items()}
    items = outcomes(made, made[0]) if made else []
    heard = [item for item in items if item.output.parts]
    comparison = resolve(compare)
    return {one.code: one.message for one in findings(heard, group(heard, comparison), requests, comparison)}


def prompt(text, **more):
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def test_nothing_is_found_in_runs_that_agree():
    assert found(["refund"] * 3, {"question": prompt("What now?")}) == {}


def test_nothing_is_found_in_answers_that_differ_without_a_sign_of_why():
    assert found(["refund", "reject"], {"question": prompt("What now?")}) == {}


def test_nothing_is_found_in_no_runs():
    assert found([]) == {}


# prompt-varies


def asking(*requests):
    """One run a request, all with the same answer."""
    return [[exchange("yes", request)] for request in requests]


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        (prompt("at 10:00"), prompt("at 10:01"), "messages[0].content"),
        (prompt("a", seed=1), prompt("a", seed="1"), "seed"),
        (prompt("a", seed=1), prompt("a", seed=True), "seed"),
        (prompt("a", stop=["x"]), prompt("a", stop=["x", "y"]), "stop[1]"),
        (prompt("a", stop=["x"]), prompt("a", stop="x"), "stop"),
        (prompt("a", stop=[]), prompt("b", stop=["y"]), "messages[0].content"),
        (
            prompt("a", tools=[{"f": {"p": [1, {"q": 0}]}}]),
            prompt("a", tools=[{"f": {"p": [1, {"q": 1}]}}]),
            "tools[0].f.p[1].q",
        ),
    ],
)
def test_prompts_that_vary_are_found_with_the_first_path_that_differs(one, other, path):
    message = (
        f"the test itself sent 2 different requests at step 1 in 3 runs; they first differ at {path};"
        " send the same in every run"
    )
    assert found(asking("p", "q", "p"), {"p": one, "q": other}) == {"prompt-varies": message}


@pytest.mark.parametrize(
    ("one", "other", "paths"),
    [
        (prompt("a"), prompt("a", user="u-1"), ["user"]),
        (prompt("a", metadata={"b": 1, "id": 1}), prompt("a", metadata={"b": 1, "id": 2}), ["metadata.id"]),
        (prompt("a", user="u-1", trace_id=1), prompt("a", user="u-2", trace_id=2), ["trace_id", "user"]),
        (prompt("a", extra={"requestId": "x"}), prompt("a", extra={"requestId": "y"}), ["extra.requestId"]),
    ],
)
def test_fields_that_are_no_part_of_the_question_come_with_the_option_that_leaves_them_out(one, other, paths):
    message = (
        f"the test itself sent 2 different requests at step 1 in 3 runs; they first differ at {paths[0]}; if that is no"
        f" part of the question, leave it out with --determinism-ignore={','.join(paths)}"
    )
    assert found(asking("p", "q", "p"), {"p": one, "q": other}) == {"prompt-varies": message}


def test_an_option_is_offered_only_when_nothing_else_varies():
    bodies = {"p": prompt("a", user="u-1"), "q": prompt("a", user="u-2"), "r": prompt("b", user="u-3")}
    message = (
        "the test itself sent 3 different requests at step 1 in 3 runs; they first differ at user;"
        " send the same in every run"
    )
    assert found(asking("p", "q", "r"), bodies) == {"prompt-varies": message}


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param({}, id="no request was kept"),
        pytest.param({"p": prompt("a")}, id="one request was kept"),
        pytest.param({"p": prompt("a"), "q": prompt("a")}, id="the bodies are equal, so the addresses differ"),
    ],
)
def test_prompts_that_vary_are_found_without_a_path_where_none_is_known(bodies):
    message = "the test itself sent 3 different requests at step 1 in 4 runs; send the same in every run"
    assert found(asking("p", "q", "r", "q"), bodies) == {"prompt-varies": message}


def test_prompts_that_vary_at_a_later_step():
    runs = [[exchange("yes", "A"), exchange("so", later)] for later in "BCB"]
    message = "the test itself sent 2 different requests at step 2 in 3 runs; send the same in every run"
    assert found(runs) == {"prompt-varies": message}


def test_only_runs_that_were_told_the_same_are_compared():
    runs = [
        [exchange("yes", "A"), exchange("so", "B")],
        [exchange("no", "A"), exchange("well", "C")],
        [exchange("no", "A"), exchange("well", "D")],
    ]
    assert found(runs) == {
        "prompt-varies": "the test itself sent 2 different requests at step 2 in 2 runs; send the same in every run"
    }


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(
            [[exchange("yes", "A"), exchange("so", "B")], [exchange("no", "A"), exchange("so", "C")]],
            id="another question after another answer",
        ),
        pytest.param(
            [[exchange("yes", "A"), exchange("so", "B")], [exchange("so", "B"), exchange("yes", "A")]],
            id="another order",
        ),
        pytest.param(
            [[exchange("yes", "A"), exchange("so", "B")], [exchange("so", "B")]],
            id="a call that was not made",
        ),
    ],
)
def test_prompts_that_do_not_vary(runs):
    assert "prompt-varies" not in found(runs)


# sampling-on

DRAWN = "temperature is {}, so answers are drawn at random; send temperature=0"
UNSENT = "no temperature is sent, so the provider's default applies, often 1; send temperature=0"


@pytest.mark.parametrize(
    ("temperature", "shown"),
    [(1, "1"), (0.7, "0.7"), (2, "2"), ("0", '"0"'), ([1], "[1]")],
)
def test_a_temperature_that_is_not_0_is_found_even_where_answers_agree(temperature, shown):
    bodies = {"question": {"temperature": temperature}}
    assert found(["refund", "refund"], bodies) == {"sampling-on": DRAWN.format(shown)}
    assert found(["refund", "reject"], bodies) == {"sampling-on": DRAWN.format(shown)}


def test_all_temperatures_are_named():
    runs = [[exchange("yes", "A"), exchange("yes", "B"), exchange("yes", "C")]] * 2
    bodies = {"A": {"temperature": 1}, "B": {"temperature": 0.5}, "C": {"temperature": 0}}
    assert found(runs, bodies) == {"sampling-on": DRAWN.format("0.5, 1")}


@pytest.mark.parametrize("body", [{}, {"temperature": None}])
def test_a_temperature_that_is_not_sent_is_found_where_answers_differ(body):
    assert found(["refund", "reject"], {"question": body}) == {"sampling-on": UNSENT}
    assert found(["refund", "refund"], {"question": body}) == {}


def test_a_temperature_of_a_request_that_no_finished_run_sent_is_not_found():
    assert found(["refund", "reject"], {"question": prompt("a"), "another": {"temperature": 1}}) == {}


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_a_temperature_of_0_is_not_found(temperature):
    assert found(["refund", "reject"], {"question": {"temperature": temperature}}) == {}


def test_what_is_only_recorded_has_no_temperature():
    runs = [Run(index, (), recorded=(text,)) for index, text in enumerate(("refund", "reject"))]
    assert found(runs) == {}


# not-json


def test_answers_that_are_not_json_under_compare_json():
    runs = ['{"a": 1}', "refund", '{"a":1.0}', "refund", "Sure! {}"]
    assert found(runs, compare="json") == {
        "not-json": "compare=json, but 3 of 5 runs answered something else, which was compared exactly; ask the model"
        " for JSON and nothing else (response_format), or choose another comparison"
    }


def test_a_step_that_is_not_json_is_enough():
    runs = [[exchange("{}", "A"), exchange("refund", "B")]] * 2
    assert list(found(runs, compare="json")) == ["not-json"]


def test_answers_that_are_json_and_other_comparisons():
    assert found(['{"a": 1}', '{"a": 2}'], compare="json") == {}
    assert found(["refund", "reject"], compare="casefold") == {}
    assert found(["refund", "reject"], compare="json:dumps") == {}


# formatting-only

FORM = (
    "the {} outputs are equal under compare={}: they differ in form only; choose that comparison if form does not"
    " matter to you"
)


@pytest.mark.parametrize(
    ("runs", "compare", "named"),
    [
        (["refund", "refund\n"], "exact", "stripped"),
        (["a b", "a  b", "a\nb"], "exact", "whitespace"),
        (["a b", "a  b"], "stripped", "whitespace"),
        (["Refund", "refund", "REFUND "], "exact", "casefold"),
        (["Refund", "refund"], "whitespace", "casefold"),
        (['{"a": 1, "b": 2}', '{"b":2,"a":1.0}'], "exact", "json"),
        (['{"a": 1}', '{"a":1}'], "casefold", "json"),
        (["refund", " refund"], "json", "stripped"),
    ],
)
def test_outputs_that_differ_in_form_only(runs, compare, named):
    assert found(runs, compare=compare)["formatting-only"] == FORM.format(len(runs), named)


def test_every_step_differs_in_form_only():
    runs = [[exchange("yes", "A"), exchange("so", "B")], [exchange("yes ", "A"), exchange("so\n", "B")]]
    assert found(runs) == {"formatting-only": FORM.format(2, "stripped")}


@pytest.mark.parametrize(
    ("runs", "compare"),
    [
        pytest.param(["refund", "refund"], "exact", id="one group"),
        pytest.param(["refund", "refund\n"], "stripped", id="one group under the comparison in force"),
        pytest.param(["refund", "refund\n", "reject"], "exact", id="one differs in more"),
        pytest.param(["refund", "re fund"], "exact", id="a space within a word"),
        pytest.param(["refund", "refund "], "json:dumps", id="a comparison of one's own"),
    ],
)
def test_outputs_that_differ_in_more_than_form(runs, compare):
    assert "formatting-only" not in found(runs, compare=compare)


def test_steps_split_in_another_way_are_more_than_form():
    assert found([[exchange("a b", "A")], [exchange("a", "A"), exchange("b", "B")]]) == {}


# degenerate-loop

LOOP = (
    "in {} of {} runs the output ends by repeating itself, so a pass proves little:"
    " a model in a loop is stable whatever its arithmetic; ask for something that has an end, or for fewer tokens"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("the cat sat on the mat " * 4, id="one sentence, four times"),
        pytest.param("It was a dark night. " + "I am a man. " * 40, id="after a start of its own"),
        pytest.param("the cat sat on the mat " * 20 + "the cat sat o", id="cut within a word"),
        pytest.param("the cat sat on the mat\n\n" * 4, id="with line ends"),
        pytest.param("no " * 12, id="one word, twelve times"),
        pytest.param("yes no " * 6, id="two words, six times"),
        pytest.param(" ".join(f"w{number}" for number in range(120)) + " " + "a b c d e " * 400, id="a long text"),
        pytest.param((" ".join(f"w{number}" for number in range(128)) + " ") * 4, id="the longest loop seen"),
    ],
)
def test_a_text_that_repeats_itself_at_its_end(text):
    assert found([text, text, "refund"])["degenerate-loop"] == LOOP.format(2, 3)


def test_a_loop_in_one_step_is_enough():
    runs = [[exchange("no " * 12, "A"), exchange("refund", "B")]] * 2
    assert found(runs) == {"degenerate-loop": LOOP.format(2, 2)}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("no no no no", id="four words"),
        pytest.param("no " * 11, id="eleven words"),
        pytest.param("the cat sat on the mat " * 3, id="three times"),
        pytest.param("the cat sat on the mat " * 4 + "and then it went away", id="not at the end"),
        pytest.param("\n".join(f"{number}. buy more apples" for number in range(1, 30)), id="a numbered list"),
        pytest.param(
            "\n".join(f"- {word} is a fruit" for word in ("apple", "pear", "plum", "fig", "date", "kiwi")), id="a list"
        ),
        pytest.param(
            "".join(
                f"{verse}\nAnd the wheels go round and round\n" for verse in ("One", "Two", "Three", "Four", "Five")
            ),
            id="a refrain",
        ),
        pytest.param("Row, row, row your boat, gently down the stream, " * 3 + "life is but a dream", id="a song"),
        pytest.param("| a | b |\n|---|---|\n" + "\n".join(f"| {n} | x |" for n in range(20)), id="a table"),
        pytest.param("[tool call] f({})\n" * 3, id="three tool calls"),
    ],
)
def test_a_text_that_does_not_repeat_itself(text):
    assert found([text, text]) == {}


# truncated

CUT = "all {} outputs hit the token limit: a fork may lie beyond it; allow more tokens"


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "length,length"])
def test_outputs_that_all_hit_the_token_limit(reason):
    assert found([[exchange("a", finish_reason=reason)]] * 3) == {"truncated": CUT.format(3)}


def test_the_last_step_decides_whether_an_output_hit_the_limit():
    long, short = exchange("a", "A", "length"), exchange("b", "B", "stop")
    assert found([[short, replaced(long, "C")]] * 2) == {"truncated": CUT.format(2)}
    assert found([[long, short]] * 2) == {}


def replaced(one, request):
    return exchange(one.output, request, one.finish_reason)


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "content_filter", "length,stop", None])
def test_one_output_that_ended_by_itself_is_enough(reason):
    runs = [[exchange("a", finish_reason="length")]] * 2 + [[exchange("a", finish_reason=reason)]]
    assert "truncated" not in found(runs)


def test_what_is_only_recorded_has_no_token_limit():
    assert found([Run(0, (), recorded=("refund",)), Run(1, (), recorded=("refund",))]) == {}


# load-sensitive


IN_COMPANY = "the answers depend on what shares the server's batch: "
APART = "each load is stable by itself, but they answer differently: "


@pytest.mark.parametrize(
    ("unique", "over_all", "message"),
    [
        ({"solo": 1, "burst": 4}, 4, f"{IN_COMPANY}1 unique under solo, 4 unique under burst"),
        (
            {"burst": 4, "solo": 1, "crowd": 1},
            5,
            f"{IN_COMPANY}4 unique under burst, 1 unique under solo, 1 unique under crowd",
        ),
        ({"solo": 1, "burst": 1}, 2, f"{APART}1 unique under solo, 1 unique under burst, 2 over all"),
        ({"burst": 1, "crowd": 1}, 2, f"{APART}1 unique under burst, 1 unique under crowd, 2 over all"),
    ],
)
def test_answers_that_depend_on_the_load(unique, over_all, message):
    advice = "; ask for batch-invariant serving, or judge the load you serve under"
    assert load_sensitive(unique, over_all) == Finding("load-sensitive", message + advice)


@pytest.mark.parametrize(
    ("unique", "over_all"),
    [
        pytest.param({}, 0, id="no experiments"),
        pytest.param({"solo": 1}, 1, id="one load, stable"),
        pytest.param({"burst": 3}, 3, id="one load, unstable"),
        pytest.param({"solo": 1, "burst": 1}, 1, id="the same under both"),
        pytest.param({"solo": 2, "burst": 5}, 5, id="unstable alone, too"),
        pytest.param({"solo": 2, "burst": 1}, 2, id="unstable alone only"),
        pytest.param({"burst": 1, "crowd": 3}, 3, id="not seen alone"),
        pytest.param({"solo": 0, "burst": 1}, 1, id="no answers under one"),
        pytest.param({"solo": 0, "burst": 2}, 2, id="no answers under one, unstable"),
    ],
)
def test_answers_that_do_not_show_a_dependence_on_the_load(unique, over_all):
    assert load_sensitive(unique, over_all) is None


def test_several_findings_stand_in_one_order():
    runs = [[exchange("no " * 12, "p", "length")], [exchange("no  " * 12, "q", "length")]]
    bodies = {"p": {"temperature": 1, "a": 1}, "q": {"temperature": 1, "a": 2}}
    assert list(found(runs, bodies)) == [
        "prompt-varies",
        "sampling-on",
        "formatting-only",
        "degenerate-loop",
        "truncated",
    ]


# finish-reason-varies, reasoning-varies


def test_one_output_that_ended_for_different_reasons():
    runs = [[exchange("a", finish_reason=reason)] for reason in ("stop", "length", "stop", None)]
    assert found(runs) == {
        "finish-reason-varies": "the same output ended for different reasons: 2 × stop, 1 × length, 1 × no reason given"
        "; where the application looks at the reason it goes on differently: allow more tokens, or record the reason so"
        " that it is compared"
    }


def test_outputs_that_differ_may_end_for_different_reasons():
    assert found([[exchange("a", finish_reason="stop")], [exchange("b", finish_reason="length")]]) == {}


def thought(output, reasoning):
    return [Exchange("question", 0, output, "m", None, "stop", None, None, reasoning)]


def test_one_output_that_was_reasoned_out_in_different_ways():
    assert found([thought("a", "so"), thought("a", "or so"), thought("a", "so")]) == {
        "reasoning-varies": "2 different ways of reasoning led to the same output; if that matters, compare it with a"
        " callable that looks at output.reasoning: no named comparison does"
    }
    assert found([thought("a", "so"), thought("a", "so"), thought("b", "or so")]) == {}


def test_reasoning_that_is_compared_parts_the_runs():
    runs = [thought("a", "so"), thought("a", "or so")]
    assert found(runs, compare=lambda output: (output, output.reasoning)) == {}


def test_what_is_asked_after_different_reasoning_may_differ():
    runs = [[*thought("a", "so"), exchange("x", "A")], [*thought("a", "or so"), exchange("x", "B")]]
    assert "prompt-varies" not in found(runs)


# sampling-on in APIs that have the temperature elsewhere


@pytest.mark.parametrize("field", ["generationConfig", "options", "inferenceConfig", "parameters"])
def test_a_temperature_among_the_options_is_found(field):
    warm, cold = ({"question": {"messages": [], field: {"temperature": degree}}} for degree in (0.7, 0))
    assert found(["a", "a"], warm) == {"sampling-on": DRAWN.format("0.7")}
    assert found(["a", "b"], cold) == {}


@pytest.mark.parametrize("api", ["embeddings", "an API that pytest_determinism_output reads"])
def test_an_api_of_which_no_temperature_is_known_is_not_accused(api):
    assert found(["a", "b"], {"question": {"input": "x"}}, api=api) == {}


# The list of codes


def test_the_page_and_the_code_have_the_same_list_of_codes():
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == CODES
    package = Path(pytest_llm_determinism.analysis.findings.__file__).parent
    source = "".join(module.read_text(encoding="utf-8") for module in package.glob("*.py"))
    assert set(re.findall(r"Finding\(\s*\"([a-z-]+)\"", source)) == set(CODES)
