"""The experiment whose run is active in this process, if any.

A module attribute and not a context variable: applications call from thread pools, and context variables do not
follow them there.
"""

from __future__ import annotations

from pytest_llm_determinism.sampling import Sampler

sampler: Sampler | None = None
