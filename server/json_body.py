"""JSON bodies: one scan of the bytes for what a parser would not refuse, then one parse in C.

Depth and size are counted on the bytes outside strings, before any object exists: whether a parser overflows its stack
differs between versions, so that recursion errors are no protection. Nothing here depends on a schema.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from quire.server.errors import ApiError

MAX_DEPTH = 64
MAX_NODES = 200_000

# An unterminated string matches to the end: were it no match, every quote in it would start a search of its own.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STRING_OR_BRACKET = re.compile(_STRING.pattern + rb"|[\[\]{}]", re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_BYTE_OFFSET = re.compile(r"\(byte (\d+)\)")
_BOM = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request body that must be one JSON object.

    Raises ApiError invalid_json (not JSON, not UTF-8, not an object), json_too_deep, json_too_large, duplicate_key.
    """
    _check_utf8(body)
    outside = _STRING.sub(b"", body)
    _check_size(outside)
    _check_depth(outside, body)
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(body, str(error))
    if not isinstance(value, dict):
        raise ApiError("invalid_json", 'The body must be a JSON object such as {"model": ...}.')
    if _count_keys(value) != outside.count(b":"):
        _refuse_duplicate(body)
    return value


def _check_utf8(body: bytes) -> None:
    if body.startswith(_BOM):
        raise ApiError("invalid_json", "The body starts with a byte order mark (line 1, column 1); leave it out.")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("invalid_json", f"The body is not valid UTF-8 (byte {error.start}).") from None


def _check_size(outside: bytes) -> None:
    nodes = outside.count(b",") + outside.count(b"[") + outside.count(b"{") + 1
    if nodes > MAX_NODES:
        raise ApiError("json_too_large", f"The body holds more than {MAX_NODES} JSON values.")


def _check_depth(outside: bytes, body: bytes) -> None:
    """Raises json_too_deep at the first bracket beyond the limit, naming the top-level field around it."""
    if outside.count(b"[") + outside.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(outside):
        depth += 1 if match[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ApiError("json_too_deep", f"The body is nested deeper than {MAX_DEPTH} levels.", _too_deep_at(body))


def _too_deep_at(body: bytes) -> str | None:
    depth, key = 0, b""
    for match in _STRING_OR_BRACKET.finditer(body):
        if match[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                break
        elif match[0] in b"]}":
            depth -= 1
        elif depth == 1:
            key = match[0][1:-1]
    return key[:64].decode("utf-8", "replace") or None


def _refuse(body: bytes, reason: str) -> NoReturn:
    found = _BYTE_OFFSET.search(reason)
    offset = len(body) if found is None else int(found[1])
    if "trailing characters" in reason:
        offset -= 1  # msgspec points behind the first of them
    before = body[:offset]
    line = before.count(b"\n") + 1
    column = offset - (before.rfind(b"\n") + 1) + 1
    plain = _BYTE_OFFSET.sub("", reason).removeprefix("JSON is malformed: ").strip() or "not JSON"
    message = f"The body is no JSON object: {plain} (line {line}, column {column})."
    raise ApiError("invalid_json", message)


def _count_keys(value: dict[str, Any]) -> int:
    """Members of all objects in `value`; no recursion, because the depth is bounded but the stack is not ours."""
    count = 0
    pending: list[Any] = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            count += len(node)
            pending += [child for child in node.values() if isinstance(child, dict | list)]
        else:
            pending += [child for child in node if isinstance(child, dict | list)]
    return count


def _refuse_duplicate(body: bytes) -> NoReturn:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for key, value in pairs:
            if key in members:
                raise _Duplicate(key)
            members[key] = value
        return members

    key = ""
    try:
        json.loads(body, object_pairs_hook=no_duplicates)
    except _Duplicate as duplicate:
        key = duplicate.key[:64]
    raise ApiError("duplicate_key", f"The key {ascii(key)[1:-1]!r} appears twice in one object.", key)


class _Duplicate(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key
