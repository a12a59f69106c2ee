"""The page docs/in-vitro.md is what its script writes, and what it claims holds in real runs."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llm_determinism import cli

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "in-vitro.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("make_in_vitro", DOCS / "make_in_vitro.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def made(script: Any) -> tuple[Any, dict[str, str]]:
    """A small run of the script: its figures, and what the page's commands and examples print."""
    with script.served(script.FACTORS) as urls:
        figures = script.measure(script.Size(prompts=1, attempts=1, runs=16, batches=2), urls)
        return figures, script.examples(PAGE, urls[2.5]) | script.commands(PAGE, urls, "--runs=16")


def part(name: str) -> str:
    found = re.search(rf"<!-- made: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def rows(name: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in part(name).splitlines()[2:]]


def highest(cell: str) -> int:
    return int(cell.rpartition("–")[2])


def test_the_page_is_what_the_script_writes_but_for_figures_that_vary(
    script: Any, made: tuple[Any, dict[str, str]]
) -> None:
    figures, printed = made
    fresh = script.rewritten(PAGE, script.parts(figures) | printed)

    def without_figures(page: str) -> str:
        page = re.sub(r"^(passed|nondeterministic) .*$", "VERDICT", page, flags=re.MULTILINE)
        return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?(–\d+)?", "N", page))

    assert without_figures(fresh) == without_figures(PAGE)


def test_examples_print_the_same_everywhere(made: tuple[Any, dict[str, str]]) -> None:
    _, printed = made
    for name in ("alone", "together", "neighbours", "sizes"):
        assert printed[name] == part(name)


def test_the_claims_hold_in_a_fresh_run(script: Any, made: tuple[Any, dict[str, str]]) -> None:
    figures, _ = made
    assert script.wrong_claims(figures) == []


def with_unique(model: str, load: str, unique: int) -> Callable[[Any], Any]:
    def change(figures: Any) -> Any:
        return replace(
            figures,
            loads=[
                replace(found, unique=unique) if (found.planned.model, found.planned.load) == (model, load) else found
                for found in figures.loads
            ],
        )

    return change


def with_other_words_in_the_middle(figures: Any) -> Any:
    """As if something else than a dropped token had changed the answers of `moe-capacity`."""
    return replace(
        figures,
        loads=[
            replace(
                found,
                answers=[
                    replace(answer, texts=[answer.texts[0][:40] + " fox"], company={"choices": [{"dropped_at": []}]})
                    for answer in found.answers
                ],
            )
            if found.planned.model == "moe-capacity"
            else found
            for found in figures.loads
        ],
    )


def with_factors_in_reverse(figures: Any) -> Any:
    factors = [found.planned.factor for found in figures.factors]
    return replace(
        figures,
        factors=[
            replace(found, planned=replace(found.planned, factor=factor))
            for found, factor in zip(figures.factors, reversed(factors), strict=True)
        ],
    )


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (with_unique("dense-fp16", "solo", 2), ["alone every model answers the same"]),
        (with_unique("moe-dropless", "burst", 2), ["dense and moe-dropless answer the same under every load"]),
        (with_unique("moe-capacity", "burst", 1), ["dense-fp16 and moe-capacity do not in company"]),
        (with_other_words_in_the_middle, ["an answer is that of moe-dropless up to its first dropped token"]),
        (
            with_factors_in_reverse,
            [
                "a larger capacity drops less",
                "nothing is dropped, and all answers are the same, when an expert has a place for every token",
                "the smallest capacity gives the most answers",
            ],
        ),
    ],
    ids=["alone", "stable", "unstable", "words", "factors"],
)
def test_a_page_with_a_wrong_claim_is_not_written(
    script: Any, made: tuple[Any, dict[str, str]], change: Callable[[Any], Any], wrong: list[str]
) -> None:
    figures, _ = made
    assert script.wrong_claims(change(figures)) == wrong


# What the page says beside the figures that it shows


def test_alone_one_answer_and_in_company_several_of_the_unstable(script: Any) -> None:
    assert [row[0] for row in rows("loads")] == [f"`{model}`" for model in script.MODELS]
    for model, solo, *company in rows("loads"):
        assert solo == "1"
        for cell in company:
            assert (highest(cell) > 1) == (model in ("`dense-fp16`", "`moe-capacity`"))


def test_more_room_gives_fewer_answers_and_at_four_one(script: Any) -> None:
    found = rows("factors")
    assert [float(row[0]) for row in found] == list(script.FACTORS)
    assert [row[2:] for row in found if float(row[0]) >= 4] == [["1", "0.0"]] * 2
    dropped = [float(row[3]) for row in found]
    assert dropped == sorted(dropped, reverse=True)
    assert highest(found[0][2]) >= highest(found[3][2]) > 1


def test_company_changes_nothing_but_what_is_dropped() -> None:
    for _, *cells in rows("drops"):
        answers, whole, alike, cut, parted = map(int, cells)
        assert answers == whole + cut
        assert alike == whole
        assert parted == 0


def test_identical_batches_are_answered_identically() -> None:
    for model, different, unique in rows("batches"):
        assert unique == "1"
        assert (highest(different) > 1) == (model == "`moe-capacity`")
    answers = [re.fullmatch(r"1 unique of 10: (.+)", line) for line in part("neighbours").splitlines()[1:-1]]
    assert None not in answers
    assert len({found[1] for found in answers if found}) == len(answers) == 3


def test_of_eight_the_first_five_are_served() -> None:
    _, composition, *lines, _ = part("together").splitlines()
    assert "'capacity': 5" in composition
    assert [line.startswith(f"{number} as alone ") for number, line in enumerate(lines)] == [True] * 5 + [False] * 3
    assert [line.endswith(" []") for line in lines] == [True] * 5 + [False] * 3


def test_without_experts_each_size_of_a_batch_has_an_answer_of_its_own() -> None:
    lines = part("sizes").splitlines()[1:-1]
    answers = [re.fullmatch(r"(\d) together, split into \[.*\]: 1 unique, … (.+)", line) for line in lines]
    assert [found and found[1] for found in answers] == ["1", "2", "4", "8"]
    assert len({found[2] for found in answers if found}) == 4


def test_the_probe_is_red_because_of_the_load_and_green_with_room_for_all() -> None:
    in_company, with_room = part("alone_and_in_company"), part("room_for_all")
    unique = re.findall(r"^(?:moe-capacity)? +(solo|burst|crowd) +(\d+) ", in_company, re.MULTILINE)
    assert [load for load, _ in unique] == ["solo", "burst", "crowd"]
    assert [int(count) > 1 for _, count in unique] == [False, True, True]
    assert "load-sensitive: the answers depend on what shares the server's batch:" in in_company
    assert in_company.splitlines()[-2].startswith("nondeterministic  moe-capacity")
    assert with_room.splitlines()[-2].startswith("passed  moe-capacity  1 unique of 30")


def test_every_command_of_the_page_is_one_of_the_program() -> None:
    commands = re.findall(r"^llm-determinism (.*)$", PAGE, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["probe", "serve", "serve", "probe"]
    for command in commands:
        assert callable(cli._parser().parse_args(command.split()).run)
