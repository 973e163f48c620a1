"""From the command line, the environment and config.yaml to one `ServerSettings`. Nothing is read that was not passed.

    flag > environment > --config file > packaged config.yaml

Each value remembers the layer it came from, so that an error names what the user wrote.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from quire.engine.errors import UsageError
from quire.server import not_built
from quire.server.settings import ServerSettings, packaged_defaults
from quire.server.yaml_file import read_yaml

FIELDS: dict[str, FieldInfo] = ServerSettings.model_fields
ENVIRONMENT_PREFIX = "QUIRE_"


@dataclass(frozen=True)
class Layer:
    """Values of one source, and what an error calls each of them."""

    values: Mapping[str, Any]
    places: Mapping[str, str]


def flag_name(field: str) -> str:
    """The flag of a field: max_model_len is --max-model-len."""
    return "--" + field.replace("_", "-")


def is_switch(field: str) -> bool:
    """Whether the field is on or off; its flag then takes no value, and has a --no- form."""
    return FIELDS[field].annotation is bool


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerSettings:
    """Read all layers. `arguments` are those after `serve`. Raises UsageError (exit code 2)."""
    given = [_flags(arguments), _environment(environment)]
    config = next((layer.values["config"] for layer in given if "config" in layer.values), None)
    if config is not None:
        given.append(_file(Path(str(config))))
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for layer in reversed(given):
        values |= layer.values
        places |= layer.places
    try:
        settings = ServerSettings(**values)
    except ValidationError as error:
        raise UsageError(_explain(error, values, places)) from None
    settings.check()
    return settings


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint that ends an error message: the known word that looks most alike, when one does."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `quire serve --help` lists the flags")


def _flags(arguments: Sequence[str]) -> Layer:
    words = [_plain(word) for word in arguments]
    known = [flag_name(name) for name in FIELDS if name != "model"]
    known += [f"--no-{flag[2:]}" for flag in known if is_switch(flag[2:].replace("-", "_"))]
    end = words.index("--") if "--" in words else len(words)
    for word in words[:end]:
        if not word.startswith("-") or word == "-" or re.match(r"-\d", word):
            continue
        flag = word.partition("=")[0]
        name = not_built.ALIASES.get(flag.lstrip("-"), flag.lstrip("-").removeprefix("no-"))
        if name in not_built.FLAGS:
            raise UsageError(f"{flag}: {not_built.FLAGS[name]}")
        if flag not in known:
            hint = nearest(flag, known) or "; `quire serve --help` lists the flags"
            raise UsageError(f"unknown flag {flag}{hint}")
    parser = _Parser("quire serve", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("model", nargs="?", metavar="MODEL")
    for name, field in FIELDS.items():
        if name == "model":
            continue
        if is_switch(name):
            parser.add_argument(flag_name(name), action=argparse.BooleanOptionalAction)
        elif _is_list(field):
            parser.add_argument(flag_name(name), nargs="+", action="extend")
        else:
            parser.add_argument(flag_name(name))
    namespace, left = parser.parse_known_intermixed_args(words)
    if left:
        raise UsageError(f"one model at a time: {left[0]!r} is one too many (an engine serves one model)")
    values = vars(namespace)
    return Layer(values, {name: "MODEL" if name == "model" else flag_name(name) for name in values})


def _plain(word: str) -> str:
    """A flag with underscores is the flag with dashes."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _is_list(field: FieldInfo) -> bool:
    return field.annotation == tuple[str, ...]


def _environment(environment: Mapping[str, str]) -> Layer:
    for name in not_built.FLAGS:
        variable = ENVIRONMENT_PREFIX + name.replace("-", "_").upper()
        if environment.get(variable):
            raise UsageError(f"{variable}: {not_built.FLAGS[name]}")
    places = {name: ENVIRONMENT_PREFIX + name.upper() for name in FIELDS}
    values = {name: environment[variable] for name, variable in places.items() if environment.get(variable)}
    return Layer(values, {name: places[name] for name in values})


def _file(path: Path) -> Layer:
    values = read_yaml(path)
    known = [name for name in packaged_defaults() if name != "config"]
    for key in values:
        if key.replace("_", "-") in not_built.FLAGS:
            raise UsageError(f"{path}: {key}: {not_built.FLAGS[key.replace('_', '-')]}")
        if key not in known:
            raise UsageError(f"{path}: unknown key {key}{nearest(key, known)}")
    return Layer(values, {name: f"{path}: {name}" for name in values})


def _explain(error: ValidationError, values: Mapping[str, Any], places: Mapping[str, str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    value = values[name]
    found = "" if name == "api_key" else f", found {value!r}"
    choices = [choice for choice in get_args(FIELDS[name].annotation) if isinstance(choice, str)]
    if first["type"] == "value_error":
        expected = str(first["ctx"]["error"])
    elif choices:
        expected = "expected one of " + ", ".join(choices) + found
        return f"{places[name]}: {expected}" + nearest(str(value), choices)
    elif is_switch(name):
        expected = "expected true or false"
    else:
        expected = first["msg"]
    hint = ""
    if places[name].startswith(ENVIRONMENT_PREFIX) and "://" in str(value):
        hint = (
            "; Kubernetes sets this variable for a service called quire: name the service otherwise, set "
            f"enableServiceLinks: false, or give {flag_name(name)}"
        )
    return f"{places[name]}: {expected}{found}{hint}"
