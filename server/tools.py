"""The tools that a chat request offers, checked."""

from __future__ import annotations

import re
import warnings
from typing import Any

import msgspec

from quire.server.errors import ApiError, quoted
from quire.server.reader import Reader

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
MAX_SCHEMA_DEPTH = 32
MAX_PATTERN_CHARACTERS = 32 << 10
"""Of all patterns of a request together: compiling one takes time."""
_BROKEN_EVERYWHERE = ("unterminated", "missing )", "unbalanced", "nothing to repeat", "multiple repeat")


class Tools(msgspec.Struct, frozen=True):
    """What the template is shown, and whether the answer is searched for calls."""

    offered: list[dict[str, Any]] | None = None
    parallel: bool = True
    """More than one call in an answer."""

    @property
    def enabled(self) -> bool:
        """Whether the model may call a tool."""
        return self.offered is not None


def read_tools(reader: Reader, limit: int, *, auto: bool) -> Tools:
    """Read tools, tool_choice and parallel_tool_calls. `auto`: the operator lets models decide when they call."""
    tools = reader.array("tools")
    if tools is not None:
        _check_tools(tools, limit)
    choice = reader.get("tool_choice")
    parallel = reader.boolean("parallel_tool_calls", default=True)
    _check_choice(choice, tools)
    if tools and choice != "none" and not auto:
        text = "tools are switched off on this server (--no-enable-auto-tool-choice)."
        raise ApiError("unsupported_parameter", text, "tools")
    return Tools(None if choice == "none" else tools, parallel)


def _check_tools(tools: list[Any], limit: int) -> None:
    if not tools:
        raise ApiError("invalid_value", "tools is empty; leave it out.", "tools")
    if len(tools) > limit:
        raise ApiError("too_many_items", f"tools has {len(tools)} items, and the limit is {limit}.", "tools")
    names: set[str] = set()
    spent = 0
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise ApiError("invalid_type", f"{path}: {quoted(tool)} is not an object.", path)
        if tool.get("type", "function") != "function":
            text = f"{path}.type: {quoted(tool['type'])} is not supported; only function is."
            raise ApiError("invalid_value", text, f"{path}.type")
        function = Reader(Reader(tool, path).object("function") or {}, f"{path}.function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            text = f"{path}.function.name: {quoted(name)} is not 1..64 letters, digits, _ and -."
            raise ApiError("invalid_value", text, f"{path}.function.name")
        if name in names:
            text = f"{path}.function.name: {quoted(name)} appears twice."
            raise ApiError("invalid_value", text, f"{path}.function.name")
        names.add(name)
        function.string("description", max_length=16384, min_length=0)
        function.boolean("strict")
        spent = _check_parameters(function, spent)


def _check_parameters(function: Reader, spent: int) -> int:
    """A schema is only shown to the model; what no reader could make sense of is refused all the same.

    `spent` counts characters of the patterns so far; returns it with this schema's.
    """
    parameters = function.object("parameters")
    field = function.name("parameters")
    pending: list[tuple[Any, int]] = [(parameters, 1)]
    while pending:
        node, depth = pending.pop()
        if not isinstance(node, dict):
            continue
        if depth > MAX_SCHEMA_DEPTH:
            raise ApiError("invalid_value", f"{field} is nested deeper than {MAX_SCHEMA_DEPTH} levels.", field)
        _check_type(node.get("type"), field)
        spent = _check_pattern(node.get("pattern"), field, spent)
        properties = node.get("properties")
        if properties is not None and not isinstance(properties, dict):
            raise ApiError("invalid_type", f"{field}: properties must be an object.", field)
        children = [*(properties or {}).values(), node.get("items"), node.get("additionalProperties")]
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            children += node[key] if isinstance(node.get(key), list) else []
        pending += [(child, depth + 1) for child in children]
    return spent


def _check_type(kind: Any, field: str) -> None:
    kinds = kind if isinstance(kind, list) else [] if kind is None else [kind]
    for name in kinds:
        if name not in _SCHEMA_TYPES:
            text = f"{field}: type {quoted(name)} is not one of {', '.join(_SCHEMA_TYPES)}."
            raise ApiError("invalid_value", text, field)


def _check_pattern(pattern: Any, field: str, spent: int) -> int:
    if pattern is None:
        return spent
    if not isinstance(pattern, str) or len(pattern) > 4096:
        raise ApiError("invalid_value", f"{field}: pattern must be a string of at most 4096 characters.", field)
    spent += len(pattern)
    if spent > MAX_PATTERN_CHARACTERS:
        raise ApiError("too_many_items", f"tools: more than {MAX_PATTERN_CHARACTERS} characters of patterns.", "tools")
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        # JSON Schema speaks ECMAScript's dialect: only what is broken in every dialect is refused.
        if not isinstance(error, re.error) or error.msg.startswith(_BROKEN_EVERYWHERE):
            raise ApiError("invalid_value", f"{field}: {quoted(pattern)} is not a pattern.", field) from None
    return spent


def _check_choice(choice: Any, tools: list[Any] | None) -> None:
    if choice is None or choice == "none":
        return
    if isinstance(choice, dict):
        function = Reader(choice, "tool_choice").object("function") or {}
        names = [tool["function"]["name"] for tool in tools or ()]
        if function.get("name") not in names:
            text = f"tool_choice.function.name: {quoted(function.get('name'))} is not among the tools."
            raise ApiError("invalid_value", text, "tool_choice")
        raise ApiError(
            "unsupported_parameter", "tool_choice of one function is not built yet; use auto.", "tool_choice"
        )
    if choice not in ("auto", "required"):
        text = f"tool_choice: {quoted(choice)} is not none, auto, required or one of the tools."
        raise ApiError("invalid_type" if not isinstance(choice, str) else "invalid_value", text, "tool_choice")
    if not tools:
        raise ApiError("invalid_value", f"tool_choice = {choice} needs tools.", "tool_choice")
    if choice == "required":
        raise ApiError("unsupported_parameter", "tool_choice = required is not built yet; use auto.", "tool_choice")
