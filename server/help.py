"""The page that `quire serve --help` prints: made from the fields of `ServerSettings`, grouped, one line a flag."""

from __future__ import annotations

from typing import Any, cast

from quire.server.layers import FIELDS, flag_name, is_switch
from quire.server.settings import packaged_defaults

_INTRODUCTION = """\
usage: quire serve [MODEL] [flags]

Serve a model over HTTP with OpenAI's completions and chat routes. Without MODEL: the starter model that ships with
Quire. Every flag is also a QUIRE_* variable and a key of config.yaml: --max-model-len, QUIRE_MAX_MODEL_LEN,
max_model_len. Flag beats variable beats file. Sizes take units: 4k = 4000, 4K = 4096, 8GiB. Defaults stand in brackets;
a flag without one is off, or its value is found at start from the model and the machine."""


def serve_help(bold: bool) -> str:
    """The whole page; group titles in bold when `bold`."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for name, field in FIELDS.items():
        extra = cast(dict[str, Any], field.json_schema_extra)
        default = packaged_defaults()[name]
        flag = "MODEL" if name == "model" else flag_name(name)
        if is_switch(name):
            flag = f"--[no-]{flag[2:]}" if default else flag
        elif name != "model":
            flag = f"{flag} {extra['metavar']}"
        groups.setdefault(extra["group"], []).append((flag, str(field.description), _shown(name, default)))
    width = 2 + max(len(flag) for rows in groups.values() for flag, _, _ in rows)
    lines = [_INTRODUCTION]
    for group, rows in groups.items():
        lines += ["", f"\033[1m{group}\033[0m" if bold else group]
        lines += [f"  {flag:<{width}}{description}{default}" for flag, description, default in rows]
    lines += ["", "Exit codes: 0 stopped as asked, 2 usage, 3 model, 4 address, 5 memory."]
    return "\n".join(lines)


def _shown(name: str, default: Any) -> str:
    if default is None or default == [] or default == "" or is_switch(name):
        return ""
    return f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
