"""The command line: `quire COMMAND`. Each command is a module that is loaded when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "batch": "quire.clients.batch",
    "bench": "quire.benchmarks.cli",
    "chat": "quire.clients.talk",
    "complete": "quire.clients.talk",
    "info": "quire.clients.info",
    "plan": "quire.clients.plan",
    "run": "quire.clients.run",
    "simulate": "quire.simulator.cli",
}
"""Command to the module whose `main(command, words)` runs it and returns the exit code; `serve` is built in."""

_HELP = """\
usage: quire COMMAND [arguments]

  serve [MODEL]         serve a model over HTTP; without MODEL, the starter model that ships with Quire
  run [MODEL] [PROMPT]  serve a model and talk to it, in one command
  chat                  talk to a server, or start one for the while (-q asks one question)
  complete [PROMPT]     continue a text, the same way
  bench KIND            load tests and measurements: serve, offline, startup
  batch -i IN -o OUT    answer a file of requests, OpenAI's batch lines
  plan [MODEL]          what a model takes of memory and how fast it will be, before it is loaded
  simulate              random lives of the scheduler and the block pool, with planted faults, checked at every step
  info                  versions, device, chosen kernels and why, the starter model

`quire COMMAND --help` tells more. Exit codes: 0, 1 request failed, 2 usage, 3 model, 4 address, 5 memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An error is one line on stderr; a traceback only with --debug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        exit_code = _run(words)
        sys.stdout.flush()
        return exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        known = _exit_code(error)
        if known is None or "--debug" in words:
            raise
        print(f"error: {error}", file=sys.stderr)
        return known


def _run(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(_HELP)
        return 0
    if command in ("--version", "-V"):
        from quire import __version__

        print(f"quire {__version__}")
        return 0
    if command == "serve":
        return _serve(rest)
    if command in COMMANDS:
        exit_code: int = importlib.import_module(COMMANDS[command]).main(command, rest)
        return exit_code
    return _refuse(command)


def _serve(words: list[str]) -> int:
    from quire.clients.terminal import colours

    if "--help" in words or "-h" in words:
        from quire.server.help import serve_help

        print(serve_help(colours(sys.stdout)))
        return 0
    from quire.server.layers import load_settings

    settings = load_settings(words, os.environ)
    if any(word.partition("=")[0].replace("_", "-") == "--api-key" for word in words):
        print(
            "warning: --api-key can be read by everybody on this machine (ps); use --api-key-file or QUIRE_API_KEY",
            file=sys.stderr,
        )
    from quire.server.serve import serve

    return serve(settings)


def _refuse(command: str) -> int:
    from quire.clients.terminal import USAGE, CommandFailed, nearest

    hint = nearest(command, ["serve", *COMMANDS]) or "; `quire --help` lists the commands"
    raise CommandFailed(f"unknown command {command}{hint}", USAGE)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that is meant for people; None for a fault of ours."""
    from quire.clients.terminal import CommandFailed
    from quire.engine.errors import QuireError

    if isinstance(error, CommandFailed | QuireError):
        return error.exit_code
    from quire.clients.errors import ClientError

    return 1 if isinstance(error, ClientError) else None


if __name__ == "__main__":
    sys.exit(main())
