"""``llm-determinism serve``: the reference server."""

from __future__ import annotations

import argparse
import sys

from pytest_llm_determinism.commands import USAGE_ERROR
from pytest_llm_determinism.results import PACKAGE


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    serve = commands.add_parser(
        "serve",
        help="run the reference server: known-stable and known-unstable models on loopback",
        description="Run the reference server, OpenAI-compatible, on loopback. Needs the extra 'reference'.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=_port, default=8080, help="port to listen on; 0 takes a free one")
    serve.add_argument(
        "--capacity-factor",
        type=_factor,
        metavar="FACTOR",
        help="expert capacity of moe-capacity: the larger, the fewer tokens are dropped (default: 2.5)",
    )
    serve.set_defaults(run=_serve)


def _port(text: str) -> int:
    if text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port; write a number from 0 to 65535")


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a capacity factor; write a number above 0, such as 2.5")
    return factor


def _serve(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.reference import one_thread_per_matrix

    one_thread_per_matrix()
    try:
        from pytest_llm_determinism.reference.model import DEFAULT_CAPACITY_FACTOR
        from pytest_llm_determinism.reference.server import serve
    except ImportError as error:
        print(
            f"llm-determinism serve: {error.name} is missing; run pip install '{PACKAGE}[reference]'", file=sys.stderr
        )
        return USAGE_ERROR
    factor = options.capacity_factor or DEFAULT_CAPACITY_FACTOR
    try:
        serve(options.host, options.port, capacity_factor=factor, announce=_announce)
    except OSError as error:
        print(f"llm-determinism serve: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _announce(url: str) -> None:
    from pytest_llm_determinism.reference import MODELS

    print(f"listening on {url}  models: {', '.join(MODELS)}  (Ctrl-C stops)", flush=True)
