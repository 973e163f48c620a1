"""Text of one choice: whole characters, stop strings, tokens counted, whatever the cutting of rows."""

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import sentencepiece_backend, starter_tokenizer, write_folder

from quire.engine.detokenizer import Detokenizer
from quire.engine.messages import FinishReason, OutputRow, TokenLogprobs, pack_ids
from quire.engine.outputs import TextDelta
from quire.engine.sampling_params import SamplingParams
from quire.engine.stop_strings import StopStrings
from quire.engine.tokenizer import Tokenizer

STARTER = starter_tokenizer()
EOS = STARTER.eos_token_id
assert EOS is not None
FINISHES: list[FinishReason] = ["stop", "length", "aborted", "timeout", "error"]


def byte_ids(data: bytes) -> list[int]:
    """One token a byte, so that every character is cut everywhere."""
    by_bytes = {
        STARTER.token_bytes(i): i
        for i in reversed(range(STARTER.vocab_size))
        if i not in STARTER.special_tokens.values()
    }
    return [by_bytes[bytes([byte])] for byte in data]


def run(
    params: SamplingParams,
    ids: Sequence[int],
    cuts: Sequence[int] = (),
    finish: FinishReason = "length",
    tokenizer: Tokenizer = STARTER,
) -> TextDelta:
    """The fold of all deltas for `ids` in rows that end at `cuts`, and the rules that hold for each of them."""
    detokenizer = Detokenizer(tokenizer, params, [1])
    borders = sorted({cut for cut in cuts if 0 < cut < len(ids)} | {0, len(ids)}) if ids else [0, 0]
    if len(borders) == 1:
        borders = [0, len(ids)]
    whole: TextDelta | None = None
    for start, end in itertools.pairwise(borders):
        logprobs = tuple(TokenLogprobs(i, -1.0, 1) for i in ids[start:end]) if params.logprobs is not None else None
        reason = finish if end == len(ids) else None
        delta = detokenizer.push(OutputRow("r", 0, pack_ids(ids[start:end]), finish_reason=reason, logprobs=logprobs))
        if delta is None:
            continue
        whole = delta if whole is None else whole.merge(delta)
        assert delta.num_output_tokens == len(whole.token_ids)
        assert (delta.finish_reason is not None) == detokenizer.finished
        if delta.finish_reason is not None:
            break
    assert whole is not None
    assert whole.finish_reason is not None
    assert detokenizer.push(OutputRow("r", 0, pack_ids([5]), finish_reason="length")) is None
    assert whole.logprobs is None or [entry.token_id for entry in whole.logprobs] == list(whole.token_ids)
    return whole


def offline(text: str, stops: Sequence[str], floor: int = 0, include: bool = False) -> tuple[str, str | None]:
    """The specification: earliest match that ends beyond `floor`, the longest of those that start there."""
    for start in range(len(text)):
        for stop in sorted(stops, key=len, reverse=True):
            if text.startswith(stop, start) and start + len(stop) > floor:
                return text[: start + len(stop) if include else start], stop
    return text, None


@pytest.mark.parametrize("character", ["a", "é", "€", "🎉", "👩‍👩‍👧"])
@pytest.mark.parametrize("finish", FINISHES)
def test_every_cut_of_every_character_at_every_end(character: str, finish: FinishReason) -> None:
    data = ("x" + character + "y").encode()
    ids = byte_ids(data)
    for length in range(1, len(ids) + 1):
        expected = data[:length].decode("utf-8", "replace")
        for cut in range(length):
            for params in (SamplingParams(), SamplingParams(stop=("never",))):
                whole = run(params, ids[:length], [cut], finish)
                assert (whole.text, whole.finish_reason) == (expected, finish)
                assert whole.token_ids == tuple(ids[:length])
        with_stop = run(SamplingParams(stop=(character,)), ids[:length], range(length), finish)
        assert (with_stop.text, with_stop.finish_reason) == offline_end(expected, character, finish)


def offline_end(text: str, stop: str, finish: str) -> tuple[str, str]:
    cut, found = offline(text, [stop])
    return cut, "stop" if found else finish


def test_no_text_before_its_character_is_whole() -> None:
    detokenizer = Detokenizer(STARTER, SamplingParams(), [1])
    shown = [detokenizer.push(OutputRow("r", 0, pack_ids([i]))) for i in byte_ids("🎉!".encode())]
    assert [delta.text for delta in shown if delta is not None] == ["", "", "", "🎉", "!"]


def random_ids(random_: random.Random, tokenizer: Tokenizer) -> list[int]:
    return [random_.randrange(tokenizer.vocab_size) for _ in range(random_.randrange(1, 60))]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
def test_streams_add_up_to_the_whole(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Thousands of random id lists, invalid bytes and special tokens among them, cut at random."""
    tokenizer = STARTER
    if kind != "byte-level":
        backend = sentencepiece_backend(metaspace=kind == "metaspace")
        tokenizer = Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp(kind), backend), check_template=False)
    random_ = random.Random(11)
    for _ in range(3000):
        ids = random_ids(random_, tokenizer)
        skip = random_.random() < 0.5
        params = SamplingParams(skip_special_tokens=skip, logprobs=0)
        whole = run(params, ids, [random_.randrange(60) for _ in range(5)], tokenizer=tokenizer)
        assert whole.text == tokenizer.vocabulary.decode(ids, skip_special_tokens=skip, continues=True)
        assert whole.token_ids == tuple(ids)


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(alphabet="ab\u00e9\u20ac", max_size=24),
    stops=st.lists(st.text(alphabet="ab\u00e9\u20ac", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    min_tokens=st.integers(0, 12),
    include=st.booleans(),
)
def test_streamed_stop_strings_equal_the_offline_cut(
    text: str, stops: list[str], cuts: list[int], min_tokens: int, include: bool
) -> None:
    ids = byte_ids(text.encode())
    params = SamplingParams(
        stop=tuple(stops), min_tokens=min_tokens, include_stop_str_in_output=include, logprobs=0, max_tokens=100
    )
    before = STARTER.decode(ids[: max(min_tokens - 1, 0)])
    floor = len(before.rstrip("\ufffd"))
    expected, stop = offline(text, stops, floor, include)
    whole = run(params, ids, cuts)
    assert (whole.text, whole.stop_reason) == (expected, stop)
    assert whole.finish_reason == ("stop" if stop else "length")
    if stop:
        start = offline(text, stops, floor)[0]
        assert len(whole.token_ids) == len((start + stop).encode())
        assert len(whole.token_ids) >= min_tokens
    else:
        assert len(whole.token_ids) == len(ids)


def test_a_delta_never_shows_what_a_stop_string_may_take_back() -> None:
    detokenizer = Detokenizer(STARTER, SamplingParams(stop=("END.",)), [1])
    shown = [detokenizer.push(OutputRow("r", 0, pack_ids([i]))) for i in byte_ids(b"aENE")]
    assert [delta.text if delta else None for delta in shown] == ["a", None, None, "EN"]
    last = detokenizer.push(OutputRow("r", 0, pack_ids(byte_ids(b"ND.and more")), finish_reason="length"))
    assert last is not None
    assert (last.text, last.finish_reason, last.stop_reason, last.num_output_tokens) == ("", "stop", "END.", 7)


def test_stop_tokens_are_counted_and_not_shown() -> None:
    ids = byte_ids(b"ok")
    stop_id = byte_ids(b"!")[0]
    caller = SamplingParams(stop_token_ids=(EOS, stop_id))
    assert (eos := run(caller, [*ids, EOS], finish="stop")).stop_reason is None
    assert (eos.text, eos.token_ids) == ("ok", (*ids, EOS))
    by_id = run(caller, [*ids, stop_id], finish="stop")
    assert (by_id.text, by_id.stop_reason, by_id.num_output_tokens) == ("ok", stop_id, 3)
    shown = SamplingParams(stop_token_ids=(EOS,), include_stop_str_in_output=True, skip_special_tokens=False)
    assert run(shown, [*ids, EOS], finish="stop").text == "ok<|im_end|>"
    by_length = run(caller, [*ids, stop_id], finish="length")
    assert (by_length.text, by_length.stop_reason) == ("ok!", None)


def test_an_unfinished_character_before_a_stop_token_is_flushed_once() -> None:
    ids = byte_ids("é".encode()[:1])
    for params in (SamplingParams(stop_token_ids=(EOS,)), SamplingParams(stop_token_ids=(EOS,), stop=("zzz",))):
        assert run(params, [*ids, EOS], [1], finish="stop").text == "\ufffd"


def test_logprobs_have_texts_and_lag_with_the_text() -> None:
    ids = byte_ids("é".encode())
    row = OutputRow(
        "r",
        0,
        pack_ids(ids),
        logprobs=tuple(TokenLogprobs(i, -0.5, 2, (7, i), (-0.1, -0.5)) for i in ids),
        prompt_logprobs=(None, TokenLogprobs(ids[0], -2.0, 3)),
        num_cached_tokens=16,
        queue_seconds=0.25,
    )
    delta = Detokenizer(STARTER, SamplingParams(logprobs=2, prompt_logprobs=0), [ids[1], ids[0]]).push(row)
    assert delta is not None
    assert delta.logprobs is not None
    assert [(t.text, t.bytes, t.logprob, t.rank) for t in delta.logprobs] == [
        ("\ufffd", b"\xc3", -0.5, 2),
        ("\ufffd", b"\xa9", -0.5, 2),
    ]
    assert [(t.token_id, t.logprob, t.rank) for t in delta.logprobs[0].top] == [(7, -0.1, 1), (ids[0], -0.5, 2)]
    assert delta.prompt_logprobs is not None
    assert [None if t is None else (t.token_id, t.logprob) for t in delta.prompt_logprobs] == [
        (ids[1], None),
        (ids[0], -2.0),
    ]
    assert (delta.num_cached_tokens, delta.queue_seconds) == (16, 0.25)

    held = Detokenizer(STARTER, SamplingParams(logprobs=0, stop=("éa",)), [1])
    assert held.push(OutputRow("r", 0, pack_ids(ids), logprobs=row.logprobs, num_cached_tokens=3)) is not None
    second = held.push(OutputRow("r", 0, pack_ids(byte_ids(b"b")), logprobs=(TokenLogprobs(5, 0.0, 1),)))
    assert second is not None
    assert (second.text, second.num_output_tokens, second.num_cached_tokens) == ("éb", 3, 3)


def test_stop_strings_wait_for_an_earlier_start_and_a_longer_match() -> None:
    stops = StopStrings(("c", "bcd"))
    assert stops.push("abc", floor=0) == ("a", None)
    text, match = stops.push("d", floor=0)
    assert (text, match) == ("", (1, 4, "bcd"))
    stops = StopStrings(("c", "bcd"))
    assert stops.push("abc", floor=0) == ("a", None)
    assert stops.push("e", floor=0) == ("b", (2, 3, "c"))
    stops = StopStrings(("ab", "abc"))
    assert stops.push("ab", floor=0) == ("", None)
    assert stops.push("", floor=0, final=True) == ("", (0, 2, "ab"))
