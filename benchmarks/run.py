"""The budgets, as ratios of two things measured alternately in one run: ``python benchmarks/run.py [ROUNDS]``.

Needs the extra ``reference`` (the server answers through it). Times vary with the machine, ratios hardly do.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
# Installed packages are compiled; without this a checkout would be compiled anew in every process.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

GATED = """
import openai, pytest
client = openai.{client}()

@pytest.mark.deterministic(runs={runs})
{mark}{kind}def test_answer():
    reply = {wait}client.chat.completions.create(
        model="m", messages=[{{"role": "user", "content": "capital?"}}], temperature=0
    )
    assert reply.choices[0].message.content
"""

WITH_LLM = """
import pytest

@pytest.mark.deterministic(runs=30)
@pytest.mark.parametrize("number", range({tests}))
def test_answer(llm, number):
    assert llm(f"capital {{number}}?", model="m")
"""

EMPTY = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_answer(number):
    for _ in range(30):
        pass
"""


class Bench:
    """A folder with projects, and the server they talk to."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = {**ENVIRONMENT, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}

    def project(self, name: str, test: str) -> Path:
        path = self.folder / name
        path.mkdir()
        (path / "test_it.py").write_text(test)
        return path

    def process(self, *command: str, cwd: Path | None = None) -> float:
        started = time.perf_counter()
        subprocess.run(command, cwd=cwd or self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    def bare_calls(self, runs: int) -> float:
        """Seconds of the calls alone, without start-up."""
        command = [sys.executable, str(HERE / "bare.py"), str(runs)]
        return float(subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout)

    def gated_calls(self, project: Path) -> float:
        """Seconds of the experiment alone, as the report says, with an empty store."""
        forget(project)
        self.process(*PYTEST, "--determinism-report=report.json", cwd=project)
        tests = json.loads((project / "report.json").read_text())["tests"]
        return float(tests[0]["experiments"][0]["seconds"])

    def cold_process(self, project: Path) -> float:
        forget(project)
        return self.process(*PYTEST, cwd=project)

    def warm_process(self, project: Path) -> float:
        return self.process(*PYTEST, cwd=project)


def forget(project: Path) -> None:
    shutil.rmtree(project / ".pytest_llm_determinism", ignore_errors=True)


def alternately(rounds: int, one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both, and the median of the ratios taken round by round."""
    pairs = [(one(), other()) for _ in range(rounds)]
    ratio = statistics.median(left / right for left, right in pairs)
    return statistics.median(left for left, _ in pairs), statistics.median(right for _, right in pairs), ratio


def row(name: str, measured: str, figure: str, bound: str) -> None:
    print(f"{name:<52} {measured:<34} {figure:>14}  {bound}", flush=True)


def timed(name: str, bound: str, rounds: int, one: Callable[[], float], other: Callable[[], float]) -> None:
    left, right, ratio = alternately(rounds, one, other)
    row(name, f"{left:.3f} s / {right:.3f} s", f"{ratio:.2f} ×", bound)


def plugin_import() -> float:
    """Milliseconds that importing the plugin adds to a pytest that is imported already."""
    code = (
        "import sys, time, _pytest.config, pytest; t = time.perf_counter();"
        "import pytest_llm_determinism.plugin; print((time.perf_counter() - t) * 1000);"
        "assert not {'openai', 'httpx', 'httpx2', 'diskcache', 'numpy'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout)


def analysis() -> None:
    import hashlib

    from pytest_llm_determinism.analysis.compare import resolve
    from pytest_llm_determinism.analysis.divergence import divergence, ways
    from pytest_llm_determinism.analysis.groups import group, outcomes
    from pytest_llm_determinism.runs import Exchange, Run

    texts = [f"{'word ' * 400}{number % 10}{' word' * 400}" for number in range(10)]

    def runs(count: int) -> list[Run]:
        exchanges = [(Exchange("key", 0, text, None, None, None, None, None),) for text in texts]
        return [Run(index, exchanges[index % 10]) for index in range(count)]

    made = runs(10_000)

    def grouped() -> float:
        started = time.perf_counter()
        items = outcomes(made, made[0])
        groups = group(items, resolve("exact"))
        divergence(ways(groups, items, resolve("exact")))
        return time.perf_counter() - started

    def hashed() -> float:
        started = time.perf_counter()
        for index in range(10_000):
            hashlib.sha256(texts[index % 10].encode()).hexdigest()
        return time.perf_counter() - started

    timed("grouping 10,000 outputs of 4 kB / hashing them", "at most 3 ×", 7, grouped, hashed)
    tracemalloc.start()
    many = runs(100_000)
    groups = group(outcomes(many, many[0]), resolve("exact"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row("memory of 100,000 runs of 4 kB in 10 groups", f"{len(groups)} groups", f"{peak / 1e6:.0f} MB", "under 50 MB")


def main(rounds: int) -> None:
    server = subprocess.Popen([sys.executable, str(HERE / "server.py")], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), url)
            sync = {"client": "OpenAI", "mark": "", "kind": "", "wait": ""}
            asynchronous = {"client": "AsyncOpenAI", "mark": "@pytest.mark.anyio\n", "kind": "async ", "wait": "await "}
            many = bench.project("many", GATED.format(runs=240, **sync))
            many_async = bench.project("many_async", GATED.format(runs=240, **asynchronous))
            (many_async / "conftest.py").write_text(
                "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
            )
            one = bench.project("one", GATED.format(runs=30, **sync))
            llm = bench.project("llm", WITH_LLM.format(tests=1))
            llms = bench.project("llms", WITH_LLM.format(tests=100))
            empty = bench.project("empty", EMPTY.format(tests=100))
            bare = [sys.executable, str(HERE / "bare.py"), "30"]
            bench.warm_process(llm)
            bench.warm_process(llms)
            row("what", "medians", "ratio", "bound")
            timed(
                "cold, 240 runs / gather over the bare client",
                "at most 1.10 ×",
                rounds,
                lambda: bench.gated_calls(many),
                lambda: bench.bare_calls(240),
            )
            timed(
                "cold, 240 runs, async / gather",
                "at most 1.10 ×",
                rounds,
                lambda: bench.gated_calls(many_async),
                lambda: bench.bare_calls(240),
            )
            timed(
                "cold, 30 runs, whole process / bare script",
                "at most 2 ×",
                rounds,
                lambda: bench.cold_process(one),
                lambda: bench.process(*bare),
            )
            timed(
                "warm, 30 runs with llm, whole process / bare script",
                "at most 0.8 ×",
                rounds,
                lambda: bench.warm_process(llm),
                lambda: bench.process(*bare),
            )
            left, right, _ = alternately(rounds, lambda: bench.warm_process(llms), lambda: bench.warm_process(empty))
            row(
                "warm, 100 tests × 30 runs with llm / empty bodies",
                f"{left:.3f} s / {right:.3f} s",
                f"{left / (1.5 * right + 0.3):.2f} ×",
                "at most 1 × (1.5 × the empty ones + 0.1 ms a sample)",
            )
            without = [*PYTEST, "-p", "no:llm_determinism"]
            left, right, _ = alternately(
                4 * rounds, lambda: bench.warm_process(empty), lambda: bench.process(*without, cwd=empty)
            )
            row(
                "idle: a suite without marked tests / without the plugin",
                f"{left:.3f} s / {right:.3f} s",
                f"{(left - right) * 1000:.1f} ms",
                "at most 5 ms",
            )
            row(
                "idle: importing the plugin",
                "",
                f"{statistics.median(plugin_import() for _ in range(rounds)):.1f} ms",
                "at most 5 ms",
            )
            analysis()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
