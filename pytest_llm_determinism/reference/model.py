"""The network: a decoder-only transformer with fixed random weights and a key-value cache.

Two arithmetics run the same weights.

*Fixed point* (`FixedPoint`). Before every matrix product activations are rounded to integers of eight bits;
the weights are integers of eight bits to begin with. A sum of up to 1040 such products stays below 2^24, so
each partial sum is an integer that float32 holds exactly, and exact sums do not depend on their order. That
makes an answer independent of whatever else is in the batch, of the BLAS kernel, its threads, and the
machine, by proof and not by luck. Functions that are not correctly rounded everywhere (exp) are read from
tables.

*Half precision* (`HalfPrecision`). Activations are float16. As fast kernels do, a product is split along its
inner dimension into so many parts that rows × parts fill the compute units: few rows, many parts
("split-K"). Every part is rounded to float16 before the parts are added. So the rounding of a row depends on
how many rows share the step, and on nothing else: within a part sums are float64 over multiples of 2^-24,
which is exact again.

The cache holds keys and values as integers of eight bits under both arithmetics, so attention is always
exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from . import MODELS, routing, words

__all__ = ["CONTEXT", "DEFAULT_CAPACITY_FACTOR", "Network", "Span", "Step", "build"]

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]

CONTEXT = 4096
"""Most tokens of a sequence, prompt and answer together."""

DEFAULT_CAPACITY_FACTOR = 2.5

WIDTH = 64
HEADS = 4
HEAD = WIDTH // HEADS
LAYERS = 4
HIDDEN = 128
EXPERTS = 8
EXPERT_HIDDEN = 64

_SHARPNESS = 6.0
_LOGIT_SCALE = 2.5
_UNITS = 32
_CODE = 32
_GRID = 1024
_KEY_CODE = 16
_SHARE = 32767
_SOFT_STEPS = 16
_SOFT_TABLE = np.array(
    [round(4095 * math.exp(-i / _SOFT_STEPS)) for i in range(10 * _SOFT_STEPS)] + [0], dtype=np.float32
)
_QUERY_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence that take part in a step: its prompt, or the token it produced last.

    `offset` tokens of the sequence are in the cache already; `prompt` is the length of its prompt.
    """

    slot: int
    tokens: Sequence[int]
    offset: int
    prompt: int


class Step(NamedTuple):
    """What came out of a step, and what in it depended on who shared it.

    `logits` are those after the last token of each span, (spans, vocabulary). `capacity` is how many tokens each
    expert took, None without such a limit; `dropped` tells for each span how often an expert had no room for one
    of its tokens, and is empty when none was dropped at all. `parts` is how many parts the products of the layers
    were split into, None where they never are.
    """

    logits: Float64s
    capacity: int | None
    dropped: Sequence[int]
    parts: int | None


class Arithmetic(Protocol):
    """How activations are rounded and multiplied with weights."""

    def parts(self, rows: int) -> int | None:
        """Into how many parts a product of so many rows is split; None when none ever is."""

    def linear(self, x: Float64s, weight: Weight) -> Float64s:
        """The product of (rows, n) activations with an (n, m) weight."""

    def round(self, x: Float64s) -> Float64s:
        """The values as this arithmetic stores them."""


class Weight:
    """A matrix of integers of eight bits times a power of two, so exact in every format used here."""

    def __init__(self, codes: npt.NDArray[np.float64], exponent: int) -> None:
        self.codes = codes
        self.exponent = exponent
        self.values: Float64s = np.ldexp(codes, exponent)
        self.single: Float32s = self.values.astype(np.float32)
        self._parts: dict[int, Float64s] = {}

    def parts(self, count: int) -> Float64s:
        """The matrix cut into `count` parts along its inner dimension, (count, n, m), padded with zeros."""
        cut = self._parts.get(count)
        if cut is None:
            inner, outer = self.values.shape
            size = -(-inner // count)
            padded = np.zeros((count * size, outer))
            padded[:inner] = self.values
            cut = self._parts[count] = padded.reshape(count, size, outer)
        return cut


class FixedPoint:
    """Eight-bit integers, exact sums: a row's result depends on the row alone."""

    def parts(self, rows: int) -> None:
        return None

    def linear(self, x: Float64s, weight: Weight) -> Float64s:
        return (_codes(x, _CODE) @ weight.single).astype(np.float64) / _CODE

    def round(self, x: Float64s) -> Float64s:
        return np.rint(x * _GRID) / _GRID


class HalfPrecision:
    """float16 with split products: a row's rounding depends on how many rows are in the step."""

    def parts(self, rows: int) -> int:
        return -(-_UNITS // rows)

    def linear(self, x: Float64s, weight: Weight) -> Float64s:
        rows, inner = x.shape
        count = min(inner, self.parts(rows))
        cut = weight.parts(count)
        size = cut.shape[1]
        if count * size > inner:
            x = np.concatenate((x, np.zeros((rows, count * size - inner))), axis=1)
        partial = np.matmul(x.reshape(rows, count, size).transpose(1, 0, 2), cut)
        return self.round(partial.astype(np.float16).sum(axis=0, dtype=np.float64))

    def round(self, x: Float64s) -> Float64s:
        return x.astype(np.float16).astype(np.float64)


def _codes(x: Float64s, scale: float) -> Float32s:
    """Values as integers between -127 and 127, in steps of 1/scale."""
    codes = np.rint(x * scale)
    np.minimum(codes, 127, out=codes)
    np.maximum(codes, -127, out=codes)
    return np.asarray(codes, dtype=np.float32)


def _normalise(x: Float64s) -> Float64s:
    """Rows scaled to a root mean square of 1. The squares are those of integers, so their sum is exact."""
    codes = np.rint(x * _GRID)
    size = np.sqrt((codes * codes).sum(axis=1, keepdims=True) / x.shape[1])
    return np.asarray(codes / np.maximum(size, 1))


def _attend(scores: Float32s, visible: npt.NDArray[np.bool_]) -> Float32s:
    """Softmax over the last axis as integer shares of `_SHARE`; what is not visible gets none."""
    scores = np.where(visible, scores, np.float32(-1e9))
    lag = scores.max(axis=-1, keepdims=True) - scores
    lag *= np.float32(_SHARPNESS * _SOFT_STEPS / (_KEY_CODE * _KEY_CODE * math.sqrt(HEAD)))
    np.minimum(np.rint(lag, out=lag), len(_SOFT_TABLE) - 1, out=lag)
    weights = _SOFT_TABLE[lag.astype(np.int16)]
    total = weights.sum(axis=-1, keepdims=True, dtype=np.float64)
    # Rounded down, so that all shares together stay below 2^15 and a sum of share × value below 2^24.
    return np.asarray(np.floor(weights * (_SHARE / total)), dtype=np.float32)


@dataclass(frozen=True)
class _Layer:
    qkv: Weight
    out: Weight
    up: Weight
    down: Weight
    router: Weight | None


@dataclass(frozen=True)
class _Weights:
    embedding: Float32s
    unembedding: Weight
    bias: Float64s
    layers: tuple[_Layer, ...]


class _Source:
    """Random weights. `RandomState` is the one generator of numpy whose stream is frozen for good."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)

    def table(self, rows: int, width: int) -> Float32s:
        codes = np.rint(self._random.standard_normal((rows, width)) * _CODE)
        return (np.clip(codes, -127, 127) / _CODE).astype(np.float32)

    def weight(self, inner: int, outer: int, *, fan_in: int | None = None, weaker: int = 0) -> Weight:
        """A matrix that keeps the size of its input when about `fan_in` of the inputs are not zero.

        The result is `weaker` powers of two smaller.
        """
        codes = np.clip(np.rint(self._random.standard_normal((inner, outer)) * 32), -127, 127)
        return Weight(codes, -5 - round(math.log2(fan_in or inner) / 2) - weaker)


@functools.cache
def _positions() -> tuple[Float32s, Float32s]:
    """Two tables, by distance: before the start of the answer, and from it on."""
    source = _Source(7)
    # Half as large as the embeddings: enough to keep answers out of loops, too little to drown out the words.
    half = np.float32(0.5)
    return source.table(CONTEXT + 1, WIDTH) * half, source.table(CONTEXT + 1, WIDTH) * half


@functools.cache
def _weights(kind: Literal["dense", "sparse", "loop"]) -> _Weights:
    """The weights; `dense` and `dense-fp16` share theirs, and so do the two models with experts.

    In `loop` the next word depends on the last one and hardly on what came before it, for attention is eight
    times weaker and there are no positions: such a chain of words must come back to where it was. A word
    dislikes itself there, so that the loop is a phrase and not a single word. Most seeds take long to fall into
    a loop, or take all prompts into the same one; this one does neither.
    """
    source = _Source({"dense": 20, "sparse": 21, "loop": 551291}[kind])
    embedding = source.table(words.TOTAL_IDS, WIDTH)
    unembedding = source.weight(WIDTH, words.VOCABULARY_SIZE)
    if kind == "loop":
        dislike = 0.3
        own = embedding[: words.VOCABULARY_SIZE].T.astype(np.float64) * _CODE
        other = unembedding.codes * math.sqrt(1 - dislike * dislike)
        unembedding = Weight(np.clip(np.rint(other - dislike * own), -127, 127), unembedding.exponent)
    bias = np.zeros(words.VOCABULARY_SIZE)
    for mark, size in zip(words.PUNCTUATION, (2.0, 2.5, 0.5, 0.0, 0.5, 1.0), strict=True):
        bias[words.TOKENS.index(mark)] = size
    layers = []
    for index in range(LAYERS):
        routed = kind == "sparse" and index % 2 == 1
        inner = EXPERTS * EXPERT_HIDDEN if routed else HIDDEN
        layers.append(
            _Layer(
                qkv=source.weight(WIDTH, 3 * WIDTH),
                out=source.weight(WIDTH, WIDTH, weaker=3 if kind == "loop" else 0),
                up=source.weight(WIDTH, inner),
                down=source.weight(inner, WIDTH, fan_in=routing.TOP_K * EXPERT_HIDDEN if routed else None),
                router=source.weight(WIDTH, EXPERTS) if routed else None,
            )
        )
    return _Weights(embedding, unembedding, bias, tuple(layers))


# Trained networks know when an answer is long enough, random ones do not: the end of the text gets likelier
# with the age of the answer, and impossible at its very beginning.
def _end_bias(age: int) -> float:
    return -1000.0 if age < 24 else min(5.0, (age - 24) / 20 - 0.5)


class Network:
    """One model: weights, an arithmetic, and a cache for up to `slots` sequences.

    `experts` is how many a layer that has any holds, None for a dense network; `capacity_factor` sizes their
    buffers, None where they take every token.
    """

    def __init__(
        self,
        weights: _Weights,
        arithmetic: Arithmetic,
        *,
        slots: int,
        capacity_factor: float | None = None,
        positions: bool = True,
    ) -> None:
        self._weights = weights
        self._arithmetic = arithmetic
        self.experts = EXPERTS if any(layer.router for layer in weights.layers) else None
        self.capacity_factor = capacity_factor
        self._positions = positions
        shape = (len(weights.layers), slots, HEADS)
        # Zeros cost memory only once they are written: most of a long context is never used.
        self._keys: Float32s = np.zeros((*shape, HEAD, CONTEXT), dtype=np.float32)
        self._values: Float32s = np.zeros((*shape, CONTEXT, HEAD), dtype=np.float32)

    def forward(self, spans: Sequence[Span]) -> Step:
        """Run one step: the tokens of all spans go through the network together."""
        ids = np.array([token for span in spans for token in span.tokens], dtype=np.intp)
        x = self._weights.embedding[ids].astype(np.float64)
        if self._positions:
            before, after = _positions()
            for start, span in _starts(spans):
                ages = np.arange(span.offset - span.prompt, span.offset - span.prompt + len(span.tokens))
                x[start : start + len(ages)] += np.where(
                    (ages < 0)[:, None], before[np.maximum(-ages, 0)], after[np.maximum(ages, 0)]
                )
        arithmetic = self._arithmetic
        limit = None
        if self.capacity_factor is not None:
            limit = routing.capacity(self.capacity_factor, len(ids), EXPERTS)
        overflow: list[npt.NDArray[np.bool_]] = []
        for index, layer in enumerate(self._weights.layers):
            qkv = arithmetic.linear(arithmetic.round(_normalise(x)), layer.qkv)
            mixed = self._attention(index, qkv, spans)
            x = arithmetic.round(x + arithmetic.linear(arithmetic.round(mixed), layer.out))
            x = arithmetic.round(x + self._feed_forward(layer, arithmetic.round(_normalise(x)), limit, overflow))
        last = np.cumsum([len(span.tokens) for span in spans]) - 1
        logits = arithmetic.linear(arithmetic.round(_normalise(x[last])), self._weights.unembedding)
        logits = logits * _LOGIT_SCALE + self._weights.bias
        for row, span in enumerate(spans):
            age = span.offset + len(span.tokens) - span.prompt if self._positions else 0
            logits[row, words.END_OF_TEXT] += _end_bias(age)
        return Step(
            arithmetic.round(logits),
            limit,
            _by_span(overflow, spans) if overflow else (),
            arithmetic.parts(len(ids)),
        )

    def _feed_forward(
        self, layer: _Layer, x: Float64s, limit: int | None, overflow: list[npt.NDArray[np.bool_]]
    ) -> Float64s:
        """The second half of a layer. When tokens find no room in experts that take `limit`, which of the choices
        these are is added to `overflow`, (tokens, 2)."""
        arithmetic = self._arithmetic
        hidden = np.maximum(arithmetic.linear(x, layer.up), 0)
        if layer.router is not None:
            experts, gates = routing.choose(arithmetic.linear(x, layer.router))
            # A token asks an expert for one place at most, so no more places than there are tokens are ever wanted.
            if limit is not None and limit < len(x):
                room = routing.kept(experts, limit, EXPERTS)
                gates = gates * room
                if not room.all():
                    overflow.append(~room)
            # All experts stand side by side in one matrix, and the gate of those that do not take part is
            # zero. Engines skip the zeros; for matrices of this size one product is faster, and the numbers
            # are the same.
            share = np.zeros((len(x), EXPERTS))
            np.put_along_axis(share, experts, gates, axis=1)
            hidden = (hidden.reshape(len(x), EXPERTS, EXPERT_HIDDEN) * share[:, :, None]).reshape(len(x), -1)
        return arithmetic.linear(arithmetic.round(hidden), layer.down)

    def _attention(self, index: int, qkv: Float64s, spans: Sequence[Span]) -> Float64s:
        codes = _codes(qkv, _KEY_CODE).reshape(-1, 3, HEADS, HEAD)
        query, key, value = codes[:, 0], codes[:, 1], codes[:, 2]
        keys, values = self._keys[index], self._values[index]
        mixed = np.empty((len(qkv), HEADS, HEAD), dtype=np.float32)
        singles: list[tuple[int, Span]] = []
        for start, span in _starts(spans):
            if len(span.tokens) == 1:
                singles.append((start, span))
                continue
            size, end = len(span.tokens), span.offset + len(span.tokens)
            rows = slice(start, start + size)
            keys[span.slot, :, :, span.offset : end] = key[rows].transpose(1, 2, 0)
            values[span.slot, :, span.offset : end] = value[rows].transpose(1, 0, 2)
            for low in range(0, size, _QUERY_BLOCK):
                part = query[start + low : start + min(size, low + _QUERY_BLOCK)].transpose(1, 0, 2)
                seen = span.offset + low + np.arange(part.shape[1])
                shares = _attend(part @ keys[span.slot, :, :, :end], np.arange(end) <= seen[:, None])
                mixed[start + low : start + low + part.shape[1]] = (shares @ values[span.slot, :, :end]).transpose(
                    1, 0, 2
                )
        if singles:
            rows_ = np.array([start for start, _ in singles])
            slots = np.array([span.slot for _, span in singles])
            offsets = np.array([span.offset for _, span in singles])
            keys[slots, :, :, offsets] = key[rows_]
            values[slots, :, offsets] = value[rows_]
            # Slots are given out lowest first, so that the ones in use lie together and need not be copied.
            used, longest = int(slots.max()) + 1, int(offsets.max()) + 1
            wanted = np.zeros((used, HEADS, 1, HEAD), dtype=np.float32)
            wanted[slots, :, 0] = query[rows_]
            seen = np.zeros(used, dtype=np.intp)
            seen[slots] = offsets
            visible = np.arange(longest) <= seen[:, None]
            shares = _attend(wanted @ keys[:used, :, :, :longest], visible[:, None, None, :])
            mixed[rows_] = (shares @ values[:used, :, :longest])[slots, :, 0]
        return mixed.reshape(-1, WIDTH).astype(np.float64) / (_SHARE * _KEY_CODE)


def _by_span(overflow: list[npt.NDArray[np.bool_]], spans: Sequence[Span]) -> list[int]:
    """How many of the choices in `overflow` are those of each span's tokens, over all layers."""
    rows = np.sum(overflow, axis=(0, 2))
    counts: list[int] = np.add.reduceat(rows, [start for start, _ in _starts(spans)]).tolist()
    return counts


def _starts(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    starts, row = [], 0
    for span in spans:
        starts.append((row, span))
        row += len(span.tokens)
    return starts


def build(name: str, *, slots: int, capacity_factor: float = DEFAULT_CAPACITY_FACTOR) -> Network:
    """The network served under `name`, one of `MODELS`."""
    if name == "dense":
        return Network(_weights("dense"), FixedPoint(), slots=slots)
    if name == "dense-fp16":
        return Network(_weights("dense"), HalfPrecision(), slots=slots)
    if name == "moe-dropless":
        return Network(_weights("sparse"), FixedPoint(), slots=slots)
    if name == "moe-capacity":
        return Network(_weights("sparse"), FixedPoint(), slots=slots, capacity_factor=capacity_factor)
    if name == "loop":
        return Network(_weights("loop"), FixedPoint(), slots=slots, positions=False)
    raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
