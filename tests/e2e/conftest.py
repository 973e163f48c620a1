"""One server with the starter model for all end-to-end tests that only read from it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from support.server import ServerProcess


@pytest.fixture(scope="session")
def starter(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """The starter model, served by a real process; afterwards nothing may be left in use."""
    with ServerProcess("--device", request.config.getoption("--serve-on")) as server:
        yield server
        server.wait_idle()


@pytest.fixture
def client(starter: ServerProcess) -> Iterator[openai.OpenAI]:
    """The openai package, pointed at the starter model's server."""
    with openai.OpenAI(base_url=starter.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
