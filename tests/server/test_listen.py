"""The address: bound first, and refused with a sentence that helps."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from quire.engine.errors import BindError
from quire.server.listen import address_of, bind, holder_of
from quire.server.settings import ServerSettings


def test_port_zero_takes_a_free_one() -> None:
    settings = ServerSettings(port=0)
    with bind(settings) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener, settings) == f"http://127.0.0.1:{port}"
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_taken_port_names_its_holder() -> None:
    """F10."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BindError) as refused:
            bind(ServerSettings(port=port))
        assert holder_of(port) == os.getpid()
    assert refused.value.exit_code == 4
    assert f"port {port}" in str(refused.value)
    assert f"process {os.getpid()}" in str(refused.value)
    assert "--port" in str(refused.value)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_foreign_address(host: str) -> None:
    """C02."""
    with pytest.raises(BindError) as refused:
        bind(ServerSettings(host=host, port=0))
    assert f"--host {host}" in str(refused.value)


def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "quire.sock")
    settings = ServerSettings(uds=path)
    with bind(settings) as listener:
        assert address_of(listener, settings) == f"unix:{path}"
        assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(BindError, match="another server listens there"):
            bind(settings)
    # The file of a server that was killed does not stand in the way of the next one.
    with bind(settings):
        pass


def test_unix_socket_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(BindError):
        bind(ServerSettings(uds=str(path)))
    assert path.read_text() == "mine"


def test_unix_socket_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="No such file"):
        bind(ServerSettings(uds=str(tmp_path / "no" / "sock")))
