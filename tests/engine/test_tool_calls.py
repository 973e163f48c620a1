"""Tool calls in text: the same result however the text is cut, and plain content for what is no call."""

import itertools
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.json_scanner import JsonError, JsonScanner
from quire.engine.tool_calls import ContentDelta, HermesParser, ToolCallDelta

Whole = tuple[str, list[tuple[str, str]]]


def parse(pieces: list[str]) -> Whole:
    """Content and (name, arguments) of each call, with the rules that hold for every delta."""
    parser = HermesParser(new_id=lambda: "call_x")
    content, calls = "", list[tuple[str, str]]()
    for part in [part for piece in pieces for part in parser.push(piece)] + parser.finish():
        if isinstance(part, ContentDelta):
            assert part.text
            content += part.text
            continue
        assert isinstance(part, ToolCallDelta)
        if part.index == len(calls):
            assert part.id == "call_x"
            assert part.name
            calls.append((part.name, part.arguments))
        else:
            assert part.index == len(calls) - 1
            assert part.id is None
            assert part.name is None
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return content, calls


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2.5e3]}}'
CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Hello.", "Hello.", []),
    ("  Hello \n", "  Hello \n", []),
    (call(WEATHER), "", [("get_weather", '{"city": "Paris", "days": [1, 2.5e3]}')]),
    ("Let me see.\n" + call(WEATHER) + "\n", "Let me see.", [("get_weather", '{"city": "Paris", "days": [1, 2.5e3]}')]),
    (
        call('{"name": "a", "arguments": {}}') + "\n" + call('{"name": "b", "arguments": {"x": {}}}'),
        "",
        [("a", "{}"), ("b", '{"x": {}}')],
    ),
    (call('{"arguments": {"x": 1}, "name": "late"}'), "", [("late", '{"x": 1}')]),
    (call('{"name": "none"}'), "", [("none", "{}")]),
    (call('{"name": "null", "arguments": null}'), "", [("null", "{}")]),
    (call('{"name": "text", "arguments": "{\\"x\\": 1}"}'), "", [("text", '{"x": 1}')]),
    (call('{"name": "extra", "arguments": {"a": 1}, "id": 7}'), "", [("extra", '{"a": 1}')]),
    ('<tool_call>{"name": "tight", "arguments": {}}</tool_call>then', "then", [("tight", "{}")]),
    ('<tool_call>{"name": "open", "arguments": {}}', "", [("open", "{}")]),
    (
        '<tool_call>{"name": "a", "arguments": {}}\n<tool_call>{"name": "b", "arguments": {}}',
        "",
        [("a", "{}"), ("b", "{}")],
    ),
    (
        '<tool_call>{"name": "tag", "arguments": {"x": "</tool_call><tool_call>"}}</tool_call>',
        "",
        [("tag", '{"x": "</tool_call><tool_call>"}')],
    ),
    # Cut off: before the call has begun it is content, after that it keeps what came.
    ('<tool_call>\n{"name": "f", ', '<tool_call>\n{"name": "f", ', []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
    ("so <tool_c", "so <tool_c", []),
    (call('{"name": "f", "arguments": {}}')[:-3], "", [("f", "{}")]),
    # No calls.
    (call("not json"), call("not json"), []),
    (call('{"name": 3, "arguments": {}}'), call('{"name": 3, "arguments": {}}'), []),
    (call('{"name": "", "arguments": {}}'), call('{"name": "", "arguments": {}}'), []),
    (call('{"name": "f", "arguments": [1]}'), call('{"name": "f", "arguments": [1]}'), []),
    (call('{"name": "f", "name": "g"}'), call('{"name": "f", "name": "g"}'), []),
    (call('{"name": "\\ud800", "arguments": {}}'), call('{"name": "\\ud800", "arguments": {}}'), []),
    (call('{"arguments": {}}'), call('{"arguments": {}}'), []),
    (call("[1, 2]"), call("[1, 2]"), []),
    (call('{"name": tru}'), call('{"name": tru}'), []),
    (call('{"name": "f\n"}'), call('{"name": "f\n"}'), []),
    ("<tool_call> <tool_call>" + WEATHER, "<tool_call> ", [("get_weather", '{"city": "Paris", "days": [1, 2.5e3]}')]),
    ("a < b </tool_call> <tool_", "a < b </tool_call> <tool_", []),
]


@pytest.mark.parametrize(("text", "content", "calls"), CASES)
def test_whole_and_one_character_at_a_time(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parse([text]) == (content, calls)
    assert parse(list(text)) == (content, calls)


def test_random_text_at_random_splits() -> None:
    """Tags, JSON and noise in any order: never an exception, and one result for all ways to cut it."""
    random_ = random.Random(8)
    atoms = ["\n", " ", "{", "}", '"', '{"x": 1}', ",", ":", '"name"', '"arguments"', "1", "\\", "é", "<", "tool_call>"]
    atoms += ["[", "]", "null", "\\u12", '{"a": "b']
    atoms += ["<tool_call>", "</tool_call>", WEATHER, '<tool_call>{"name": "f", "arguments": '] * 6
    begun = 0
    for _ in range(1200):
        text = "".join(random_.choice(atoms) for _ in range(random_.randrange(1, 14)))
        whole = parse([text])
        begun += bool(whole[1])
        cuts = sorted(random_.randrange(len(text) + 1) for _ in range(random_.randrange(8)))
        borders = [0, *cuts, len(text)]
        assert parse([text[a:b] for a, b in itertools.pairwise(borders)]) == whole, text
        assert parse(list(text)) == whole, text
    assert begun > 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=4), st.booleans(), st.sampled_from([None, 1, 2]))
def test_any_arguments_come_back(arguments: dict[str, object], escape: bool, indent: int | None) -> None:
    body = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=escape, indent=indent)
    content, ((name, text),) = parse(list(call(body)))
    assert (content, name) == ("", "f")
    assert json.loads(text) == arguments


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet='{}[]":,\\ \nu0aEtruefalsn-+.1', max_size=30))
def test_the_scanner_accepts_what_json_accepts(text: str) -> None:
    text = '{"a":' + text
    scanner = JsonScanner()
    try:
        for character in text.rstrip(" \n"):
            scanner.feed(character)
        accepted = scanner.done
    except JsonError:
        accepted = False
    try:
        pairs = json.loads(text, object_pairs_hook=list, parse_constant=lambda name: pytest.skip(name))
        valid = len(dict(pairs)) == len(pairs)
    except ValueError:
        valid = False
    assert accepted == valid


def test_arguments_are_passed_on_as_they_come() -> None:
    parser = HermesParser(new_id=lambda: "call_1")
    assert parser.push('Sure.\n<tool_call>\n{"name": "f", ') == [ContentDelta("Sure.")]
    assert parser.push('"arguments": {"a"') == [ToolCallDelta(0, "call_1", "f", '{"a"')]
    assert parser.push(": 1") == [ToolCallDelta(0, arguments=": 1")]
    assert parser.push("}}\n</tool_") == [ToolCallDelta(0, arguments="}")]
    assert parser.push("call>") == []
    assert parser.finish() == []


def test_depth_and_size_cost_nothing_unusual() -> None:
    deep = '{"name": "f", "arguments": {"a": ' + "[" * 100_000
    assert parse([call(deep)])[1] == [("f", '{"a": ' + "[" * 62)]
    long = json.dumps({"name": "f", "arguments": {"a": "x" * 200_000}})
    late = json.dumps({"arguments": {"a": "x" * 100_000}, "name": "f"})
    started = time.process_time()
    assert parse(list(call(late)))[1][0][0] == "f"
    assert len(parse([call(long)])[1][0][1]) == 200_009
    assert len(parse(["<tool_call>" * 20_000])[0]) == 220_000
    assert time.process_time() - started < 5
