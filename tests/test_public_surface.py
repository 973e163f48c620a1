"""What users import and call: a change here is a change of the product."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

import quire
import quire.clients


def test_the_names_of_quire() -> None:
    assert quire.__all__ == ["LLM", "AsyncClient", "Client", "SamplingParams", "__version__"]
    assert quire.__version__ == importlib.metadata.version("quire")


@pytest.mark.parametrize("name", quire.__all__)
def test_every_name_of_quire_is_there(name: str) -> None:
    assert getattr(quire, name) is not None


@pytest.mark.parametrize("name", quire.clients.__all__)
def test_every_name_of_the_clients_is_there_and_explained(name: str) -> None:
    assert inspect.getdoc(getattr(quire.clients, name))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = quire.Clinet
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = quire.clients.Clinet


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_calls_of_both_clients_are_the_same() -> None:
    calls = {"chat", "complete", "models", "tokenize", "detokenize", "version", "ready", "close"}
    assert public(quire.clients.Client) == public(quire.clients.AsyncClient) == calls


def test_the_calls_of_llm() -> None:
    assert {"generate", "chat", "close"} <= public(quire.LLM)


def test_the_console_script() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="quire")
    assert [script.value for script in scripts] == ["quire.clients.cli:main"]
