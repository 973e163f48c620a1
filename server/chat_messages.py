"""The messages of a chat, checked and brought into the one shape that chat templates read.

Templates get `content` as a string and tool calls with `arguments` as an object; broken arguments in a history stay a
string, because a model's old mistake must not poison the chat.
"""

from __future__ import annotations

import json
from typing import Any

from quire.server.errors import ApiError, quoted
from quire.server.limits import Limits
from quire.server.reader import Reader

ROLES = ("system", "developer", "user", "assistant", "tool")
_KNOWN = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_PART_SEPARATOR = "\n"


def read_messages(reader: Reader, limits: Limits, ignored: list[str]) -> list[dict[str, Any]]:
    """Check `messages`; adds the names of fields that no template reads to `ignored`."""
    given = reader.required("messages")
    if not isinstance(given, list):
        raise reader.wrong_type("messages", given, "a list")
    if not 1 <= len(given) <= limits.messages:
        text = f"messages has {len(given)} entries, not 1..{limits.messages}."
        raise ApiError("invalid_value", text, "messages")
    known_calls: set[str] = set()
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(given):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise ApiError("invalid_type", f"{path}: {quoted(message)} is not an object with a role.", f"{path}.role")
        messages.append(_read_message(Reader(message, path), known_calls))
        ignored += [
            f"{path}.{name}" for name, value in message.items() if name not in _KNOWN and value not in (None, [])
        ]
    return messages


def _read_message(reader: Reader, known_calls: set[str]) -> dict[str, Any]:
    role = reader.get("role")
    if not isinstance(role, str) or role not in ROLES:
        text = f"{reader.name('role')}: {quoted(role)} is not one of {', '.join(ROLES)}."
        raise ApiError("missing" if role is None else "invalid_value", text, reader.name("role"))
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = _read_tool_calls(reader, role, known_calls)
    message["content"] = _read_content(reader, may_be_null=bool(calls))
    if calls:
        message["tool_calls"] = calls
    if (name := reader.string("name", max_length=256)) is not None:
        message["name"] = name
    if role == "tool":
        message["tool_call_id"] = _read_tool_call_id(reader, known_calls)
    return message


def _read_content(reader: Reader, may_be_null: bool) -> str:
    content = reader.get("content")
    field = reader.name("content")
    if content is None and may_be_null:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise reader.wrong_type("content", content, "text or a list of text parts")
    if not content:
        raise ApiError("invalid_value", f"{field} is an empty list; send text or text parts.", field)
    texts: list[str] = []
    for index, part in enumerate(content):
        inner = Reader(part if isinstance(part, dict) else {}, f"{field}[{index}]")
        kind = inner.get("type")
        if kind != "text":
            text = f"{inner.name('type')}: {quoted(kind)} is not supported; only text parts are."
            raise ApiError("invalid_value", text, inner.name("type"))
        value = inner.get("text")
        if not isinstance(value, str):
            raise inner.wrong_type("text", value, "a string")
        texts.append(value)
    return _PART_SEPARATOR.join(texts)


def _read_tool_calls(reader: Reader, role: str, known_calls: set[str]) -> list[dict[str, Any]]:
    given = reader.array("tool_calls")
    if not given:
        return []
    if role != "assistant":
        text = f"{reader.name('tool_calls')}: only an assistant calls tools."
        raise ApiError("invalid_value", text, reader.name("tool_calls"))
    calls = []
    for index, call in enumerate(given):
        inner = Reader(call if isinstance(call, dict) else {}, f"{reader.name('tool_calls')}[{index}]")
        function = Reader(inner.object("function") or {}, inner.name("function"))
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise function.wrong_type("name", name, "the name of a function")
        call_id = inner.string("id", max_length=256)
        known_calls.update(() if call_id is None else (call_id,))
        arguments = _read_arguments(function)
        calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _read_arguments(function: Reader) -> dict[str, Any] | str:
    given = function.get("arguments")
    if given is None:
        return {}
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        raise function.wrong_type("arguments", given, "a JSON object as a string")
    try:
        # Not msgspec: a string here has not been scanned for depth, and json's own guard raises RecursionError.
        parsed = json.loads(given)
    except (ValueError, RecursionError):
        return given
    return parsed if isinstance(parsed, dict) else given


def _read_tool_call_id(reader: Reader, known_calls: set[str]) -> str:
    call_id = reader.get("tool_call_id")
    field = reader.name("tool_call_id")
    if call_id is None:
        raise ApiError("missing", f"{field} is required: it names the call that this message answers.", field)
    if not isinstance(call_id, str) or call_id not in known_calls:
        text = f"{field}: {quoted(call_id)} is the id of no tool call in an earlier assistant message."
        raise ApiError("invalid_value", text, field)
    return call_id
