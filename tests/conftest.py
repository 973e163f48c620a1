"""For every test: threads that wait at a barrier give their core away, because tests and servers share the cores."""

import os
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def same_random_numbers_each_time() -> None:
    """A test that draws numbers without a generator of its own draws the same ones in every run."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
