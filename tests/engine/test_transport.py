"""The process line: frames, handshake, fuzz, merging under a stalled reader, both faces."""

import asyncio
import itertools
import random
import socket
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.frames import (
    MAGIC,
    MAX_FRAME_BYTES,
    FrameReader,
    Outbox,
    ProtocolError,
    TransportClosed,
    build_id,
    decode_to_engine,
    encode_from_engine,
    encode_message,
    frame,
    handshake,
)
from quire.engine.memory_transport import memory_pair
from quire.engine.messages import (
    Add,
    Answer,
    Cancel,
    Failed,
    Failure,
    FromEngine,
    LiveIds,
    OutputRow,
    Query,
    Shutdown,
    Statistics,
    StepOutputs,
    ToEngine,
    TokenLogprobs,
    pack_ids,
    unpack_ids,
)
from quire.engine.sampling_params import SamplingParams
from quire.engine.transport import SocketEngineTransport, SocketHttpTransport

ADD = Add("a" * 32, pack_ids([1, 2, 70000]), SamplingParams(max_tokens=3, stop=("x",)))
TO_ENGINE: list[ToEngine] = [ADD, Cancel("b" * 32, None, "client_gone"), LiveIds(("a",)), Query(7, "check"), Shutdown()]


def outputs(*rows: OutputRow, steps: int = 0) -> StepOutputs:
    return StepOutputs(rows=rows, statistics=Statistics(num_steps=steps))


async def socket_ends() -> tuple[SocketEngineTransport, SocketHttpTransport, socket.socket]:
    ours, theirs = socket.socketpair()
    return SocketEngineTransport(theirs), await SocketHttpTransport.connect(ours), theirs


async def test_messages_cross_in_both_directions() -> None:
    engine, http, _ = await socket_ends()
    for message in TO_ENGINE:
        http.send(message)
    received: list[ToEngine] = []
    while len(received) < len(TO_ENGINE):
        received += await asyncio.to_thread(engine.receive, 5.0)
    assert received == TO_ENGINE
    sent: list[FromEngine] = [
        outputs(OutputRow("r", 0, pack_ids([5]))),
        Answer(7, Statistics()),
        Failed(None, Failure("c", "m")),
    ]
    for answer in sent:
        engine.send(answer)
    back: list[FromEngine] = []
    while len(back) < len(sent):
        back += await http.receive()
    assert back == sent
    assert engine.receive(0) == []
    http.close()
    engine.close()


async def test_each_side_learns_of_the_others_end() -> None:
    engine, http, _ = await socket_ends()
    engine.send(Answer(1, Statistics()))
    engine.close()
    assert await http.receive() == [Answer(1, Statistics())]
    with pytest.raises(TransportClosed, match="engine closed"):
        await http.receive()
    http.send(Shutdown())  # does not raise: receive() has told

    engine, http, _ = await socket_ends()
    http.send(Shutdown())
    await asyncio.sleep(0)
    http.close()
    await asyncio.sleep(0)
    assert await asyncio.to_thread(engine.receive, 5.0) == [Shutdown()]
    with pytest.raises(TransportClosed, match="HTTP process"):
        await asyncio.to_thread(engine.receive, 5.0)
    engine.send(Answer(1, Statistics()))
    engine.close()


def test_a_reader_that_stalls_never_blocks_the_engine_and_gets_merged_rows() -> None:
    """Thousands of steps into a socket that nobody reads: no step waits, and the tokens arrive whole and in order."""
    ours, theirs = socket.socketpair()
    engine = SocketEngineTransport(theirs)
    logprob = TokenLogprobs(1, -0.5, 1)
    steps = 5_000
    for step in range(steps):
        rows = [OutputRow(f"request{i}", 0, pack_ids([step * 4 + i]), logprobs=(logprob,)) for i in range(4)]
        engine.send(outputs(*rows, steps=step))
    reader = FrameReader(lambda payload: msgspec.msgpack.decode(payload, type=FromEngine))
    ours.setblocking(False)
    tokens: dict[str, list[int]] = {f"request{i}": [] for i in range(4)}
    num_messages, last = 0, -1
    while last < steps - 1:
        assert engine.receive(0) == []
        engine._flush()
        for message in reader.feed(ours.recv(1 << 20)):
            assert isinstance(message, StepOutputs)
            num_messages += 1
            last = message.statistics.num_steps
            for row in message.rows:
                tokens[row.request_id] += unpack_ids(row.token_ids)
                assert row.logprobs is not None
                assert len(row.logprobs) == len(row.token_ids) // 4
    assert num_messages < steps / 2
    assert all(tokens[f"request{i}"] == [step * 4 + i for step in range(steps)] for i in range(4))
    engine.close()
    ours.close()


def test_the_outbox_keeps_the_order_of_other_messages() -> None:
    box = Outbox()
    box.put(outputs(OutputRow("a", 0, pack_ids([1])), steps=1))
    box.put(outputs(OutputRow("a", 0, pack_ids([2])), OutputRow("a", 1, pack_ids([9])), steps=2))
    box.put(Failed(("b",), Failure("code", "text")))
    box.put(outputs(OutputRow("a", 0, pack_ids([3]), finish_reason="stop"), steps=3))
    taken = []
    while box:
        taken.append(box.take())
    assert taken == [
        outputs(OutputRow("a", 0, pack_ids([1, 2])), OutputRow("a", 1, pack_ids([9])), steps=2),
        Failed(("b",), Failure("code", "text")),
        outputs(OutputRow("a", 0, pack_ids([3]), finish_reason="stop"), steps=3),
    ]


def test_step_outputs_over_the_cap_are_cut_and_a_row_over_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.engine.frames.MAX_FRAME_BYTES", 1000)
    rows = [OutputRow(f"r{i}", 0, pack_ids(range(100))) for i in range(5)]
    payloads = encode_from_engine(outputs(*rows))
    assert all(len(payload) <= 1000 for payload in payloads)
    back = [row for payload in payloads for row in msgspec.msgpack.decode(payload, type=FromEngine).rows]
    assert back == rows
    (payload,) = encode_from_engine(outputs(OutputRow("big", 1, pack_ids(range(1000)))))
    (row,) = msgspec.msgpack.decode(payload, type=FromEngine).rows
    assert (row.request_id, row.choice, row.finish_reason) == ("big", 1, "error")
    assert row.failure is not None
    assert row.failure.code == "answer_too_large"


def test_another_build_is_refused_by_name() -> None:
    reader = FrameReader(decode_to_engine)
    with pytest.raises(ProtocolError, match="of build 0.0.9-feed, this one of " + build_id()):
        reader.feed(frame(MAGIC + b"0.0.9-feed"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "announces"),
        (frame(b"hello"), "no handshake"),
        (handshake() + b"\xff\xff\xff\xff", "announces"),
        (handshake() + frame(b""), "no message"),
        (handshake() + frame(b"\xc1"), "no message"),
        (handshake() + frame(b"\x91" * 100_000), "no message"),
        (handshake() + frame(msgspec.msgpack.encode({"type": "Execute", "code": "1"})), "no message"),
        (handshake() + frame(encode_message(Add("a", b"123", SamplingParams()))), "multiple of 4"),
    ],
)
def test_what_is_no_frame_ends_the_connection(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        FrameReader(decode_to_engine).feed(data)


def test_a_truncated_frame_is_an_error_at_the_end() -> None:
    reader = FrameReader(decode_to_engine)
    assert reader.feed(handshake() + frame(encode_message(ADD))[:-1]) == []
    with pytest.raises(ProtocolError, match="inside a frame"):
        reader.finish()
    with pytest.raises(ProtocolError, match="limit"):
        frame(bytes(MAX_FRAME_BYTES + 1))


async def test_garbage_closes_the_http_side_and_the_engine_side() -> None:
    ours, theirs = socket.socketpair()
    http = await SocketHttpTransport.connect(ours)
    theirs.sendall(handshake() + frame(b"\xc1\xc1"))
    with pytest.raises(ProtocolError):
        await http.receive()
    await asyncio.to_thread(theirs.recv, 1000)
    assert await asyncio.to_thread(theirs.recv, 1000) == b""
    theirs.close()

    ours, theirs = socket.socketpair()
    engine = SocketEngineTransport(theirs)
    ours.sendall(b"\x00" * 64)
    with pytest.raises(ProtocolError):
        engine.receive(5.0)
    engine.close()
    ours.close()


def test_thousands_of_corrupted_streams_raise_nothing_else() -> None:
    """Bit flips, cuts, insertions and pure noise: messages of the schema, or ProtocolError."""
    random_ = random.Random(5)
    whole = handshake() + b"".join(frame(encode_message(message)) for message in TO_ENGINE)
    refused = 0
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            where = random_.randrange(len(data))
            match random_.randrange(4):
                case 0:
                    data[where] ^= 1 << random_.randrange(8)
                case 1:
                    del data[where : where + random_.randint(1, 30)]
                case 2:
                    data[where:where] = random_.randbytes(random_.randint(1, 30))
                case _:
                    data[len(handshake()) :] = random_.randbytes(random_.randint(0, 200))
            if not data:
                break
        reader = FrameReader(decode_to_engine)
        try:
            assert all(isinstance(message, msgspec.Struct) for message in reader.feed(bytes(data)))
            reader.finish()
        except ProtocolError:
            refused += 1
    assert refused > 2000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=30))
def test_frames_survive_every_way_of_cutting_the_stream(cuts: list[int]) -> None:
    whole = handshake() + b"".join(frame(encode_message(message)) for message in TO_ENGINE)
    borders = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    reader = FrameReader(decode_to_engine)
    received = [m for a, b in itertools.pairwise(borders) for m in reader.feed(whole[a:b])]
    assert received == TO_ENGINE
    reader.finish()


async def test_the_memory_pair_has_the_same_two_faces() -> None:
    engine, http = memory_pair()
    assert engine.receive(0) == []
    seen: list[ToEngine] = []

    def run() -> None:
        seen.extend(engine.receive(5.0))
        engine.send(Answer(1, Statistics()))
        try:
            engine.receive(5.0)
        except TransportClosed:
            seen.append(Shutdown())

    thread = threading.Thread(target=run)
    thread.start()
    http.send(ADD)
    assert await http.receive() == [Answer(1, Statistics())]
    http.close()
    await asyncio.to_thread(thread.join)
    assert seen == [ADD, Shutdown()]
    with pytest.raises(TransportClosed):
        await http.receive()
