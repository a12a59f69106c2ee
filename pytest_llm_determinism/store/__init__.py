"""The samples on disk: what was answered, by request and run."""

from pytest_llm_determinism.store.request import StoredRequest
from pytest_llm_determinism.store.sample import Sample, sample_key
from pytest_llm_determinism.store.samples import SampleStore

__all__ = ["Sample", "SampleStore", "StoredRequest", "sample_key"]
