"""The reference server: an OpenAI-compatible server with models that are known to be stable or unstable.

It is the positive and the negative control of the plugin: a gate that passes `dense` and fails `moe-capacity`
has shown that it can do both. Behind the HTTP routes stands a small transformer with fixed random weights
and an engine with continuous batching; nothing is scripted, so what differs, differs because of the
arithmetic.

    words        the vocabulary and the tokenizer
    routing      which tokens reach which experts
    model        the network and its two arithmetics
    engine       the running batch: requests join and leave at every step
    questions    reading a request: what is asked, or the error that refuses it
    answers      the answers on their way, and how they are shown
    chat         chat completions
    completions  completions
    responses    responses
    server       the HTTP routes
    process      the server as a child process (standard library only)

Importing this package costs nothing: numpy, starlette and uvicorn are imported by the modules that need them.
"""

from __future__ import annotations

import os

__all__ = ["FINGERPRINT", "MODELS", "one_thread_per_matrix"]

FINGERPRINT = "reference-1"
"""How the `system_fingerprint` of every answer begins. A change of the arithmetic must change it."""

MODELS = ("dense", "dense-fp16", "moe-dropless", "moe-capacity", "loop")
"""The names under which the models are served."""


def one_thread_per_matrix() -> None:
    """Ask the BLAS libraries for one thread; only heeded when called before numpy is imported.

    The matrices here are so small that handing them to a second thread costs more than it saves, and threads
    that wait for the next one keep a core busy that the tests need. The answers do not depend on it: see
    `model`.
    """
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[variable] = "1"
