"""The tokens of an answer with their log-probabilities, in the forms in which APIs tell them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pytest_llm_determinism.shapes.answer import Token


def tokens_in(told: Any) -> list[Token]:
    """The tokens that one response, or one event of a stream, tells; none where it has them in no known form.

    What is odd about them is no reason to refuse an answer.

    Args:
        told: a list of entries (OpenAI's Responses, Ollama), an object with that list as ``content`` (Chat
            Completions), with columns ``tokens``, ``token_logprobs``, ``top_logprobs`` (Completions), with
            ``chosenCandidates`` and ``topCandidates`` (Gemini), or with rows ``tokens`` and ``top_tokens`` (Hugging
            Face).
    """
    try:
        return list(_tokens_in(told))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return []


def _tokens_in(told: Any) -> Iterator[Token]:
    if isinstance(told, dict) and "chosenCandidates" in told:
        others = (place.get("candidates") or () for place in told.get("topCandidates") or ())
        yield from _rows(told["chosenCandidates"], others, "token", "logProbability")
    elif isinstance(told, dict) and "token_logprobs" in told:
        texts, logprobs = told["tokens"], told["token_logprobs"]
        tops = told.get("top_logprobs") or [None] * len(texts)
        for text, logprob, top in zip(texts, logprobs, tops, strict=True):
            yield _token(text, logprob, (top or {}).items())
    elif isinstance(told, dict) and "tokens" in told:
        said = [row for row in told["tokens"] if not row.get("special")]
        # One place for each token, special ones included.
        places = zip(told["tokens"], told.get("top_tokens") or (), strict=False)
        yield from _rows(said, (top for row, top in places if not row.get("special")), "text", "logprob")
    else:
        for entry in (told.get("content") if isinstance(told, dict) else told) or ():
            tops = ((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
            yield _token(_text(entry), entry["logprob"], tops)


def _rows(rows: Iterable[Any], others: Iterable[Any], text: str, logprob: str) -> Iterator[Token]:
    """One row a token; of the places of `others` there may be none at all, and what is missing there counts as none."""
    tops = iter(others)
    for row in rows:
        yield _token(row[text], row[logprob], ((other[text], other[logprob]) for other in next(tops, ())))


def _token(text: Any, logprob: Any, others: Iterable[tuple[Any, Any]]) -> Token:
    if not isinstance(text, str):
        raise TypeError(f"a token that is no text: {text!r}")
    return Token(text, _logprob(logprob), tuple((str(other), _logprob(told)) for other, told in others))


def _logprob(told: Any) -> float:
    logprob = float(told)
    # A little above 0 is rounding; the comparison is also false for what is no number.
    if not logprob < 0.01:
        raise ValueError(f"not the logarithm of a probability: {told!r}")
    return logprob


def _text(entry: dict[str, Any]) -> str:
    # A token may hold a piece of a character only, which its bytes tell; surrogates stand for those until `answer_of`.
    if isinstance(entry.get("bytes"), list):
        return bytes(entry["bytes"]).decode("utf-8", "surrogateescape")
    return str(entry["token"])
