"""The block pool, watched while a real engine answers."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
from support.server import ServerProcess

QUESTION = "Tell me a story about a lighthouse, a storm, and a cat that could not sleep."


def frames(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line:
            yield json.loads(line.removeprefix("data: "))


def test_the_page_is_there(starter: ServerProcess) -> None:
    page = httpx.get(starter.url + "/")
    assert page.status_code == 200
    assert page.text.startswith("<!doctype html>")
    assert httpx.get(starter.url + "/", headers={"if-none-match": page.headers["etag"]}).status_code == 304


def test_watching_an_answer(starter: ServerProcess, client: openai.OpenAI) -> None:
    """Blocks are taken and given back, some stay cached, and the same prompt finds them."""

    def ask() -> None:
        client.chat.completions.create(
            model="starter",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=200,
            extra_body={"ignore_eos": True},
        )

    starter.wait_idle()
    with httpx.stream("GET", starter.url + "/playground/pool", timeout=30) as response:
        assert response.status_code == 200
        stream = frames(response)
        first = next(stream)
        assert (first["kind"], first["sequences"]) == ("full", [])
        blocks = {block[0]: block for block in first["blocks"]}
        for cached_at_least in (0, first["block_size"]):
            asking = threading.Thread(target=ask)
            asking.start()
            lengths = []
            for frame in stream:
                assert frame["kind"] == "change"
                blocks |= {block[0]: block for block in frame["blocks"]}
                if frame["sequences"]:
                    (sequence,) = frame["sequences"]
                    assert sequence["cached"] >= cached_at_least
                    (table,) = sequence["tables"]
                    assert (table["window"], table["first"]) == (None, 0)
                    assert len(table["blocks"]) * frame["block_size"] >= sequence["computed"]
                    assert all(blocks[block_id][1] == 1 for block_id in table["blocks"])
                    lengths.append(sequence["tokens"])
                elif lengths:
                    break
            asking.join()
            assert lengths == sorted(lengths)
            assert len(set(lengths)) >= 2, "it was seen to grow"
            assert not any(references for _, references, _ in blocks.values())
            assert any(cached for _, _, cached in blocks.values())


def test_a_watcher_does_not_hold_up_the_end() -> None:
    with ServerProcess() as server, httpx.stream("GET", server.url + "/playground/pool", timeout=30) as response:
        stream = frames(response)
        assert next(stream)["kind"] == "full"
        server.process.send_signal(signal.SIGTERM)
        assert list(stream) == [], "the stream ends, and is not cut off"
        assert server.process.wait(20) == 0
