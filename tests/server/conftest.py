"""A served stub model, in process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import StubEngine, StubTokenizer

from quire.server.app import create_app
from quire.server.settings import ServerSettings

BASE = "http://127.0.0.1:8000"


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def tokenizer() -> StubTokenizer:
    return StubTokenizer()


@pytest.fixture
def app(engine: StubEngine, tokenizer: StubTokenizer) -> FastAPI:
    """Default settings, no keys."""
    return create_app(ServerSettings(served_model_name=["stub"]), engine, tokenizer)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a network."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        yield client
    assert app.state.service.admission.num_requests == 0
    assert app.state.service.admission.num_sequences == 0
    assert app.state.service.admission.body_bytes == 0
    assert app.state.service.admission.token_bytes == 0
    app.state.service.text.close()
