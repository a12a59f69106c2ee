import functools
import json
import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.compare import LAXER, NAMED, Comparison, RunOutput, is_json, resolve
from pytest_llm_determinism.shapes.answer import Choice, ToolCall


def same(comparison, *outputs):
    """Whether the comparison puts all the outputs (a string, or a tuple of parts) into one group."""
    resolved = resolve(comparison)
    parts = [(output,) if isinstance(output, str) else output for output in outputs]
    return len({resolved.key(RunOutput(one)) for one in parts}) == 1


def test_a_run_output_is_a_string_that_knows_its_parts():
    output = RunOutput(part for part in ("refund", "", "done\n"))
    assert output == "refund\n\ndone\n"
    assert output.parts == ("refund", "", "done\n")
    assert RunOutput(()) == ""
    assert RunOutput(()).parts == ()


def test_a_run_output_is_not_made_of_the_characters_of_a_string():
    with pytest.raises(TypeError, match="RunOutput takes a tuple of parts, not one string"):
        RunOutput("refund")


def test_the_named_comparisons():
    assert list(NAMED) == ["exact", "stripped", "whitespace", "casefold", "json"]
    assert LAXER == ("stripped", "whitespace", "casefold", "json")


FORMS = [
    ("Refund the customer", "Refund the customer", "exact stripped whitespace casefold json"),
    ("Refund the customer", "Refund the customer\n", "stripped whitespace casefold"),
    ("\u2003\r\nRefund", "Refund", "stripped whitespace casefold"),
    ("Refund the customer", "Refund \n\t the\u00a0customer", "whitespace casefold"),
    ("Refund the customer", " REFUND  the Customer", "casefold"),
    ("Straße", "STRASSE", "casefold"),
    ("Refund", "Re fund", ""),
    ("café", "cafe", ""),
    ('{"a": 1, "b": [true]}', '{\n  "b":[true],"a":1.0}\n', "json"),
    ('{"a":1}', '{"A":1}', "casefold"),
    ('{"a":1}', ' {"a":1}', "stripped whitespace casefold json"),
]


@pytest.mark.parametrize(("first", "second", "names"), FORMS)
def test_which_named_comparisons_find_two_outputs_the_same(first, second, names):
    assert [name for name in NAMED if same(name, first, second)] == names.split()


@pytest.mark.parametrize("name", NAMED)
def test_a_named_comparison_applies_to_each_part(name):
    assert not same(name, ("a b",), ("a", "b"))
    assert not same(name, ("a", "b"), ("b", "a"))
    assert not same(name, ("a",), ("a", ""))
    assert same(name, ("a", "b"), ("a", "b"))


def test_json_of_each_part_counts_where_the_whole_is_not_json():
    assert same("json", ('{"a": 1}', "[1, 2]"), ('{"a":1}', "[1,2]"))
    assert not same("json", ('{"a": 1}', "[1, 2]"), ('{"a":1}', "[2,1]"))


@pytest.mark.parametrize(
    "texts",
    [
        ["1", "1.0", "1e0", "10e-1", "0.1E+1", "0.01e2", " 1.000 "],
        ["-0", "0", "0.0", "-0e7", "0e999999999999"],
        ["-120", "-1.2e2", "-120.00"],
        ["1e400", "10e399", "1" + "0" * 400],
        ["0.1", "1e-1", "0.10"],
        ["9" * 5000, "9" * 5000 + ".0"],
        ['{"a": 1, "a": 2}', '{"a": 2}'],
        ['"\\u00e9\\/"', '"é/"'],
        ['"\\ud83d\\ude00"', '"😀"'],
        ['{"b": {"d": [], "c": {}}, "a": null}', '{"a":null,"b":{"c":{},"d":[]}}'],
    ],
)
def test_json_that_is_the_same(texts):
    assert same("json", *texts)
    assert all(is_json(RunOutput([text])) for text in texts)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "true"),
        ("0", "false"),
        ("1", '"1"'),
        ("1", "-1"),
        ("1e1", "1e2"),
        ("12", "21"),
        ("null", '"null"'),
        ("[]", "{}"),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "[[1, 2]]"),
        ("[1, 2]", "[12]"),
        ('["a,b"]', '["a","b"]'),
        ('{"a": 1}', '["a", 1]'),
        ('{"a": null}', "{}"),
        ('{"a": 1, "b": 2}', '{"a\\": 1, \\"b": 2}'),
        ('{"a:1e0,b": 2}', '{"a": 1, "b": 2}'),
        ('"1e0"', "1"),
        ('"a"', '"A"'),
        ("12345678901234567890123", "12345678901234567890124"),
        ("0.1", "0.10000000000000000001"),
        ("1e400", "2e400"),
        ("9" * 5000, "9" * 5001),
    ],
)
def test_json_that_is_not_the_same(first, second):
    assert not same("json", first, second)
    assert is_json(RunOutput([first]))
    assert is_json(RunOutput([second]))


NOT_JSON = [
    "",
    "refund",
    "{'a': 1}",
    '{"a": 1} and more',
    '```json\n{"a": 1}\n```',
    "01",
    "1.",
    "+1",
    "NaN",
    "[Infinity]",
    '{"a": -Infinity}',
    '"line\nend"',
    "\ufeff1",
]


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_is_not_json_is_compared_exactly(text):
    assert not is_json(RunOutput([text]))
    assert same("json", text, text)
    assert not same("json", text, text + " ")
    assert not same("json", text, json.dumps(text))


def test_no_json_is_equal_to_the_form_of_what_is_not():
    key = resolve("json").key(RunOutput(["refund"]))
    assert key not in {resolve("json").key(RunOutput([text])) for text in ('["not JSON", "refund"]', '"refund"')}


@pytest.mark.parametrize("depth", [sys.getrecursionlimit() - 20, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_nested_too_deeply_to_read_is_compared_exactly(depth, opening, closing):
    text = opening * depth + "1" + closing * depth
    assert not is_json(RunOutput([text]))
    assert same("json", text, text)
    assert not same("json", text, text + " ")


def test_json_of_ordinary_depth_is_read():
    assert same("json", "[" * 100 + "1" + "]" * 100, "[ " * 100 + "1.0" + "]" * 100)


numbers = (
    st.integers()
    | st.integers(0, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1.0, 1e22, 10**22, -0.0])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["1", "1e0", "a", ""]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc") | st.text(max_size=2), inner),
    max_leaves=6,
)


def marked(value):
    """A JSON value as read with exact numbers, with what Python takes for equal told apart."""
    if isinstance(value, dict):
        return {key: marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item) for item in value]
    return (isinstance(value, bool), value)


@given(values, values)
def test_json_is_the_same_when_the_values_read_are_equal(first, second):
    texts = json.dumps(first), json.dumps(second, indent=1)
    read = [marked(json.loads(text, parse_float=Decimal, parse_int=Decimal)) for text in texts]
    assert same("json", *texts) == (read[0] == read[1])


@given(values, st.randoms(use_true_random=False))
def test_json_written_another_way_is_the_same(value, random_source):
    def shuffled(value):
        if isinstance(value, dict):
            items = [(key, shuffled(item)) for key, item in value.items()]
            random_source.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert same("json", json.dumps(value), json.dumps(shuffled(value), indent=2, ensure_ascii=False))


@given(st.text(alphabet=" \n\u2003aAßẞİ"), st.text(alphabet=" \n\u2003aAßẞİ"))
def test_each_laxer_comparison_of_text_finds_the_same_what_the_one_before_does(first, second):
    found = [same(name, first, second) for name in ("exact", "stripped", "whitespace", "casefold")]
    assert found == sorted(found)


def asks(*calls: ToolCall, text: str = "") -> RunOutput:
    """An output of one part, as an answer with tool calls has it."""
    return RunOutput([Choice(text, tool_calls=list(calls)).output()], tool_calls=[calls])


def test_arguments_of_tool_calls_are_compared_as_json():
    key = resolve("json").key
    written = asks(ToolCall("refund", '{"order": 7, "why": "late"}'))
    assert key(written) == key(asks(ToolCall("refund", '{"why":"late","order":7.0}')))
    different = [
        asks(ToolCall("refund", '{"order": 8, "why": "late"}')),
        asks(ToolCall("return", '{"order": 7, "why": "late"}')),
        asks(ToolCall("refund", '{"order": 7, "why": "late"}'), text="Gladly."),
        asks(ToolCall("refund", '{"order": 7, "why": "late"}'), ToolCall("refund", '{"order": 7, "why": "late"}')),
        asks(ToolCall("refund", '{"order": 7, "why"')),
        RunOutput(written.parts),
    ]
    assert len({key(output) for output in (written, *different)}) == 1 + len(different)
    assert is_json(written)
    assert is_json(asks(ToolCall("refund", "{}"), text='{"a": 1}'))
    assert not is_json(different[2])
    assert not is_json(different[4])


def test_a_callable_gets_tool_calls_and_parsed_values():
    output = asks(ToolCall("refund", '{"order": 7}'), ToolCall("tell", "all is well"))
    assert [(call.name, call.arguments) for call in output.tool_calls] == [
        ("refund", '{"order": 7}'),
        ("tell", "all is well"),
    ]
    assert output.tool_calls[0].parsed == {"order": 7}
    assert RunOutput(['{"label": "refund", "score": 0.5}']).parsed == {"label": "refund", "score": 0.5}
    assert RunOutput(["[1]", "null"]).parsed == [[1], None]


def test_what_is_not_json_has_no_parsed_value():
    """Two outputs that are not JSON must not be equal because neither can be read."""
    by_label = resolve(lambda output: output.parsed["label"])
    assert by_label.key(RunOutput(['{"label": "refund"}'])) == "refund"
    with pytest.raises(ValueError, match=r"the output is not JSON .*: 'I would say refund'"):
        by_label.key(RunOutput(["I would say refund"]))


def test_a_callable_gets_the_whole_output():
    seen = []

    def last_part(output):
        seen.append((output, output.parts))
        return output.parts[-1]

    comparison = resolve(last_part)
    assert comparison.key(RunOutput(("thinking", "refund"))) == "refund"
    assert seen == [("thinking\nrefund", ("thinking", "refund"))]
    assert same(last_part, ("thinking", "refund"), ("pondering", "refund"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, [2]], [1, [2]]),
        ({"a": [1], "b": {}}, {"b": {}, "a": [1]}),
        ({1, 2}, {2, 1}),
        (({"a": 1}, [2]), ({"a": 1}, [2])),
        (math.nan, float("nan")),
        ({"score": math.nan}, {"score": -math.nan}),
        (None, None),
        (1, 1.0),
    ],
)
def test_values_of_callables_that_are_the_same(first, second):
    results = iter([first, second])
    assert same(lambda output: next(results), "a", "b")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, [("a", 1)]),
        ({"a": 1}, {("a", 1)}),
        ({1}, [1]),
        ({1}, {2}),
        ({}, []),
        (math.nan, "nan"),
        ([math.nan], [0.0]),
        ("1", 1),
    ],
)
def test_values_of_callables_that_are_not_the_same(first, second):
    results = iter([first, second])
    assert not same(lambda output: next(results), "a", "b")


@dataclass
class Ticket:
    priority: int


def ticket(output):
    return {"ticket": [Ticket(1)]}


def test_a_value_that_cannot_be_frozen_is_an_error_that_names_the_comparison():
    with pytest.raises(TypeError) as raised:
        resolve(ticket).key(RunOutput(["a"]))
    assert str(raised.value) == (
        f"comparison {__name__}:ticket returned a value that cannot be grouped (unhashable type: 'Ticket'); "
        "return text, numbers, or tuples, lists, dicts or sets of them"
    )


def test_an_error_of_a_callable_is_not_hidden():
    def broken(output):
        raise TypeError("not today")

    with pytest.raises(TypeError, match=r"^not today$"):
        resolve(broken).key(RunOutput(["a"]))


class Rounded:
    def __call__(self, output):
        return round(float(output))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("exact", "exact"),
        ("json", "json"),
        ("json:loads", "json:loads"),
        ("os.path:basename", "os.path:basename"),
        ("collections:UserString.upper", "collections:UserString.upper"),
        (ticket, f"{__name__}:ticket"),
        (json.loads, "json:loads"),
        (len, "builtins:len"),
        (str.lower, "builtins:str.lower"),
        (Rounded(), f"{__name__}:Rounded"),
        (functools.partial(round, ndigits=1), "functools:partial"),
    ],
)
def test_the_name_of_a_comparison(value, name):
    assert resolve(value).name == name


def test_a_comparison_can_be_imported():
    comparison = resolve("json:loads")
    assert comparison == Comparison("json:loads", json.loads, by_part=False)
    assert comparison.key(RunOutput(['{"a": [1]}'])) == comparison.key(RunOutput(['{"a":[1.0]}']))


def test_an_added_comparison_gets_each_part_and_may_return_any_value():
    comparison = resolve("words", {"words": str.split})
    assert comparison.name == "words"
    assert comparison.key(RunOutput(("a b", "c"))) == comparison.key(RunOutput(("a  b", " c")))
    assert comparison.key(RunOutput(("a b", "c"))) != comparison.key(RunOutput(("a", "b c")))


ALLOWED = "exact, stripped, whitespace, casefold, json, a callable, or 'package.module:function'"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nope", f"'nope' is not a comparison; use {ALLOWED}"),
        ("", f"'' is not a comparison; use {ALLOWED}"),
        (None, f"None is not a comparison; use {ALLOWED}"),
        (3, f"3 is not a comparison; use {ALLOWED}"),
        (":loads", f"':loads' is not a comparison; use {ALLOWED}"),
        ("striped", f"'striped' is not a comparison; did you mean 'stripped'? Use {ALLOWED}"),
        ("JSON:", f"'JSON:' is not a comparison; use {ALLOWED}"),
        ("json:", f"'json:' is not a comparison; did you mean 'json'? Use {ALLOWED}"),
        (
            "no_such_module:same",
            (
                "comparison 'no_such_module:same': cannot import 'no_such_module': "
                "ModuleNotFoundError: No module named 'no_such_module'"
            ),
        ),
        ("json:load_s", "comparison 'json:load_s': 'json' has no 'load_s'; did you mean 'loads'?"),
        ("json:decoder.qqq", "comparison 'json:decoder.qqq': 'json.decoder' has no 'qqq'"),
        ("math:pi", "comparison 'math:pi' is not a callable but of type float"),
    ],
)
def test_what_is_not_a_comparison(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve(value)


def test_a_module_that_fails_at_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_comparisons.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "cannot import 'broken_comparisons': ZeroDivisionError: division by zero"
    with pytest.raises(ValueError, match=message) as raised:
        resolve("broken_comparisons:same")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_added_comparisons_are_named_in_the_message_and_meant_by_it():
    with pytest.raises(ValueError, match=r"did you mean 'words'\? Use exact, .*, json, words, a callable, or"):
        resolve("word", {"words": str.split})


def test_an_added_comparison_must_be_callable():
    with pytest.raises(ValueError, match="comparison 'words' is not a callable but of type int"):
        resolve("words", {"words": 3})


def test_an_added_comparison_cannot_replace_a_built_in_one():
    with pytest.raises(ValueError, match="cannot have the name of a built-in one: exact, json"):
        resolve("stripped", {"json": str.split, "exact": str.split, "words": str.split})
