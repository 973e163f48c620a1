"""For every test: threads that wait at a barrier give their core away, because tests and servers share the cores."""

import os
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the end-to-end tests serve on: `make test-gpu` says cuda."""
    parser.addoption("--serve-on", choices=("cpu", "cuda"), default="cpu", help="device of the servers of tests/e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def same_random_numbers_each_time() -> None:
    """A test that draws numbers without a generator of its own draws the same ones in every run."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
