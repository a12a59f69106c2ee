"""Which tokens reach which experts.

A router scores every expert for every token; the best two process it. Production engines give each expert a
buffer of fixed size for a step, its capacity, so that the work per step is known in advance. Tokens beyond
it are dropped: they skip that expert. Tokens of different requests compete for the same buffers, which is
how a request comes to depend on its neighbours. Without a capacity ("dropless") every token is on its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOP_K", "capacity", "choose", "kept"]

TOP_K = 2

# A gate is the logistic function of the difference of two scores, read from a table. Library versions of exp
# may differ in the last bit with the lane of a vector register a value happens to fall into; a table does
# not.
_STEPS = 16
_GATES = np.array([round(128 / (1 + math.exp(-i / _STEPS))) / 128 for i in range(8 * _STEPS + 1)])


def capacity(factor: float, tokens: int, experts: int) -> int:
    """How many tokens one expert takes in a step: ceil(factor × tokens × top-k / experts)."""
    return math.ceil(factor * tokens * TOP_K / experts)


def choose(scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The two best experts of each token, best first, and their gates, which sum to 1.

    `scores` has one row a token and one column an expert; both results have the shape (tokens, 2). Of equal
    scores the expert with the lower number wins.
    """
    rows = np.arange(len(scores))
    first = scores.argmax(axis=1)
    best = scores[rows, first]
    rest = scores.copy()
    rest[rows, first] = -np.inf
    second = rest.argmax(axis=1)
    lead = np.minimum(np.rint((best - rest[rows, second]) * _STEPS), len(_GATES) - 1)
    gate = _GATES[lead.astype(np.intp)]
    return np.stack((first, second), axis=1), np.stack((gate, 1 - gate), axis=1)


def kept(experts: npt.NDArray[np.intp], limit: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of the choices find room, in batch order: earlier rows first, in a row the better choice first.

    `experts` has the shape (tokens, 2), `limit` is the capacity of each of `count` experts.
    """
    flat = experts.reshape(-1)
    arrivals: npt.NDArray[Any] = flat[:, None] == np.arange(count)
    place = np.cumsum(arrivals, axis=0)[np.arange(len(flat)), flat]
    return np.asarray(place <= limit).reshape(experts.shape)
