"""Seeing every model call of a run: one seam a HTTP library, all sharing what `Sampler` knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pytest_llm_determinism.observe import active, aiohttp_seam, httpx_seam, urllib3_seam
from pytest_llm_determinism.observe.patching import installed
from pytest_llm_determinism.sampling import Sampler

__all__ = ["observing"]

SEAMS = (httpx_seam.SEAM, urllib3_seam.SEAM, aiohttp_seam.SEAM)


@contextlib.contextmanager
def observing(sampler: Sampler) -> Iterator[None]:
    """While this is open, model calls of this process belong to `sampler`. A second one nests in the first."""
    outer = active.sampler
    active.sampler = sampler
    try:
        if outer is None:
            with installed(SEAMS):
                yield
        else:
            yield
    finally:
        active.sampler = outer
