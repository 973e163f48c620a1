"""`quire bench KIND`: each kind is a module that is loaded when it is called."""

from __future__ import annotations

import importlib

from quire.clients.terminal import USAGE, CommandFailed, nearest

KINDS = {
    "serve": "quire.benchmarks.serve",
    "offline": "quire.benchmarks.offline",
    "startup": "quire.benchmarks.startup",
    "memory": "quire.benchmarks.memory",
    "kernels": "quire.benchmarks.kernels",
    "compare": "quire.benchmarks.compare",
    "soak": "quire.benchmarks.soak",
    "study": "quire.benchmarks.studies.run",
}
"""Kind to the module whose `main(words)` runs it and returns the exit code."""

_HELP = """\
usage: quire bench KIND [flags]

  serve    load a running server (any that speaks OpenAI's API, or Ollama); --verify compares every answer
  offline  throughput without a server
  startup  from `quire serve` to the first token
  memory   what the engine takes beside weights and KV cache
  kernels  single operations against what the machine can do
  compare  the same load against several servers, in turns
  soak     hours of mixed load, overload and kills against the reliability goals
  study    the figures of docs/benchmarks.md: what the cache and the batching are worth

`quire bench KIND --help` lists the flags."""

_EXTRA = {"aiohttp", "matplotlib"}


def main(command: str, words: list[str]) -> int:
    """Run one benchmark; returns the exit code."""
    kind, rest = (words[0], words[1:]) if words else ("--help", [])
    if kind in ("--help", "-h", "help"):
        print(_HELP)
        return 0
    if kind not in KINDS:
        hint = nearest(kind, [*KINDS]) or f"; `quire {command} --help` lists them"
        raise CommandFailed(f"quire {command}: unknown kind {kind}{hint}", USAGE)
    try:
        exit_code: int = importlib.import_module(KINDS[kind]).main(rest)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise CommandFailed(
            f"quire {command} {kind} needs {error.name}; install it with: pip install 'quire[bench]'", USAGE
        ) from error
    return exit_code
