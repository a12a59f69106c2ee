"""Gating an application: the marker is all that is added."""

import pytest
from triage import QUEUES, triage


@pytest.mark.deterministic(runs=30)
@pytest.mark.parametrize("ticket", ["I want my money back", "Where is my parcel?"])
def test_triage_is_stable(ticket):
    assert triage(ticket) in (*QUEUES, "a person")
