"""The listening socket, bound before anything slow begins."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from quire.engine.errors import BindError
from quire.server.settings import ServerSettings

BACKLOG = 2048
USER_TIMEOUT_MS = 30_000
"""How long sent bytes may stay unacknowledged before the kernel drops a connection (a half-open one, or one that reads
nothing)."""

SEND_BUFFER_BYTES = 128 << 10
"""What the kernel takes of a stream that nobody reads (it doubles the number). Without a bound that grows to megabytes
for each, and a reader that has stalled is noticed late."""


def bind(settings: ServerSettings) -> socket.socket:
    """A bound and listening socket. Raises BindError naming the address, the reason and, where visible, the holder."""
    if settings.uds is not None:
        return _bind_unix(settings.uds)
    return _bind_tcp(settings.host, settings.port, "--port")


def bind_health(settings: ServerSettings) -> socket.socket | None:
    """The same for --health-port, on the same host; None without one."""
    if settings.health_port is None:
        return None
    return _bind_tcp(settings.host, settings.health_port, "--health-port")


def _bind_tcp(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise BindError(f"--host {host}: not an address of this machine ({error.strerror})") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted connections inherit these.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port, flag) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, settings: ServerSettings) -> str:
    """What to tell people: the URL, with the port that was really bound."""
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://{host}:{port}{settings.root_path}"


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = "another server listens there" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise BindError(f"--uds {path}: {reason}; choose another path") from None
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on any more; leave anything else alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _explained(error: OSError, host: str, port: int, flag: str) -> BindError:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        by = "" if holder is None else f" by process {holder}"
        return BindError(f"port {port} on {host} is taken{by}; stop it, or choose another with {flag}")
    if error.errno == errno.EACCES:
        return BindError(f"port {port} on {host} needs privileges that this process lacks; choose one from 1024 up")
    if error.errno == errno.EADDRNOTAVAIL:
        return BindError(f"--host {host}: not an address of this machine; try 127.0.0.1 or 0.0.0.0")
    return BindError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose --host and {flag}")


def holder_of(port: int) -> int | None:
    """The process that listens on a TCP port, when /proc shows it to us."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and inodes & set(_open_files(process / "fd")):
            return int(process.name)
    return None


def _open_files(folder: Path) -> Iterator[str]:
    """Targets of a process's descriptors; none for another user's process, and those that close meanwhile are left
    out."""
    try:
        links = list(folder.iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def _listening_inodes(port: int) -> set[str]:
    """Inodes of listening sockets, from /proc/net/tcp: `sl local_address rem_address st ... inode`."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(words[9])
    return inodes
