"""What one run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llm_determinism.shapes.answer import Token, ToolCall


@dataclass(frozen=True, slots=True)
class Exchange:
    """One model call of a run. Equal exchanges are one object, so that runs cost little (`Sampler` sees to it).

    Attributes:
        request: key of the canonical request.
        occurrence: 0 for the first time this request was sent in the run, 1 for the second, …
        output: what the answer is compared by.
        reasoning: what the model thought aloud; not compared.
        tool_calls: those that stand in the output.
        cached_tokens: input tokens that the provider took from a cache of its own; None where it does not say.
        tokens: of the answer's text, from the first of the equal exchanges, where the response told them.
    """

    request: str
    occurrence: int
    output: str
    model: str | None
    fingerprint: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    cached_tokens: int | None = None
    tokens: tuple[Token, ...] = field(default=(), compare=False, repr=False)

    @property
    def told(self) -> tuple[str, str]:
        """What the application was told: what it asks next may depend on the reasoning, too."""
        return self.output, self.reasoning


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of the body.

    Attributes:
        index: 0-based.
        exchanges: in the order they were started.
        recorded: what the body passed to `determinism.record`.
        error: the API error that lasted, in words; such a run has no output.
        broken_off: the body ended in an exception, so calls may be missing at the end.
    """

    index: int
    exchanges: tuple[Exchange, ...]
    recorded: tuple[str, ...] = ()
    error: str | None = None
    broken_off: bool = False
