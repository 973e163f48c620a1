"""The arithmetic of a load test on recorded timelines, and the block and JSON that show it."""

from __future__ import annotations

import re

import pytest

from quire.benchmarks.backends import Chat, Completions, Ollama
from quire.benchmarks.load import take
from quire.benchmarks.metrics import Answer, Summary, summarize
from quire.benchmarks.report import block, reasons

FIRST = Answer(0, sent=10.0, moments=[10.5, 10.6, 10.8], ended=10.9, input_tokens=7, output_tokens=5)
SECOND = Answer(1, sent=10.1, moments=[10.3], ended=10.3, input_tokens=3, output_tokens=1)
SILENT = Answer(2, sent=10.2, ended=10.4, input_tokens=2, output_tokens=1)
FAILED = [Answer(index, sent=10.95, ended=11.0, error="HTTP 503: busy", output_tokens=9) for index in (3, 4)]
BROKEN = Answer(5, sent=10.0, moments=[10.9], ended=10.95, error="the connection broke")


@pytest.fixture
def summary() -> Summary:
    answers = [FIRST, SECOND, SILENT, *FAILED, BROKEN]
    return summarize(answers, 2.0, percentiles=(50.0, 99.9), goals={"ttft": 300, "tpot": 90})


def test_each_figure_by_hand(summary: Summary) -> None:
    found = summary.as_json()
    assert (found["completed"], found["failed"]) == (3, 3)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (12, 7)
    assert found["failure_reasons"] == {"HTTP 503: busy": 2, "the connection broke": 1}
    assert found["request_throughput"] == pytest.approx(1.5)
    assert found["output_throughput"] == pytest.approx(3.5)
    assert found["total_token_throughput"] == pytest.approx(9.5)
    assert found["max_concurrent_requests"] == 4
    assert summary.values["ttft"] == pytest.approx([500, 200])
    assert summary.values["tpot"] == pytest.approx([100])
    assert summary.values["itl"] == pytest.approx([100, 200])
    assert summary.values["e2el"] == pytest.approx([900, 200, 200])
    assert found["median_itl_ms"] == pytest.approx(150)
    assert found["std_itl_ms"] == pytest.approx(50)
    assert found["p99_itl_ms"] == pytest.approx(199)
    assert found["p99.9_itl_ms"] == pytest.approx(199.9)


def test_goodput_counts_whole_requests_within_every_goal(summary: Summary) -> None:
    assert summary.as_json()["request_goodput"] == pytest.approx(1.0)
    assert summarize([FIRST], 1.0).as_json()["request_goodput"] is None
    assert summarize([FIRST, SECOND], 1.0, goals={"e2el": 900.1}).good == 2


def test_the_keys_are_those_of_the_field(summary: Summary) -> None:
    found = set(summary.as_json())
    assert found >= {
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput",
    }  # fmt: skip
    latencies = {
        f"{kind}_{name}_ms"
        for kind in ("mean", "median", "std", "p50", "p99", "p99.9")
        for name in ("ttft", "tpot", "itl", "e2el")
    }
    assert found >= latencies
    assert summarize([], 1.0).as_json()["mean_ttft_ms"] is None


def test_the_block_is_fifty_columns_wide_and_in_order(summary: Summary) -> None:
    shown = block(summary, shown=("ttft", "tpot", "itl", "e2el"), max_concurrency=8, rate=2.5)
    lines = shown.splitlines()
    assert {len(line) for line in lines} == {50}
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    labels = [line.split(":")[0].strip("-= ") for line in lines[1:-1]]
    assert labels == [
        "Successful requests", "Failed requests", "Maximum request concurrency", "Request rate configured (RPS)",
        "Benchmark duration (s)", "Total input tokens", "Total generated tokens", "Request throughput (req/s)",
        "Request goodput (req/s)", "Output token throughput (tok/s)", "Total Token throughput (tok/s)",
        "Time to First Token", "Mean TTFT (ms)", "Median TTFT (ms)", "P99 TTFT (ms)",
        "Time per Output Token (excl. 1st token)", "Mean TPOT (ms)", "Median TPOT (ms)", "P99 TPOT (ms)",
        "Inter-token Latency", "Mean ITL (ms)", "Median ITL (ms)", "P99 ITL (ms)",
        "End-to-end Latency", "Mean E2EL (ms)", "Median E2EL (ms)", "P99 E2EL (ms)",
    ]  # fmt: skip
    assert re.search(r"^Output token throughput \(tok/s\):\s+3\.50\s*$", shown, re.MULTILINE)
    assert reasons(summary).splitlines()[0] == "  2 failed: HTTP 503: busy"


def test_a_run_without_answers_has_a_block_too() -> None:
    shown = block(summarize(FAILED, 1.0))
    assert "n/a" in shown
    assert {len(line) for line in shown.splitlines()} == {50}


def test_the_first_token_is_the_first_text() -> None:
    """The role that opens a chat starts no clock; half a character after the first text is a token; usage counts."""
    answer, chat = Answer(0, sent=0.0), Chat()
    chunks = [
        (1.0, b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'),
        (2.0, b'{"choices":[{"index":0,"delta":{"content":"A"},"token_ids":[5]}]}'),
        (3.0, b'{"choices":[{"index":0,"delta":{},"token_ids":[6]}]}'),
        (4.0, b'{"choices":[{"index":0,"delta":{"content":"\xc3\xbc"},"token_ids":[7]}]}'),
        (5.0, b'{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}'),
        (6.0, b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}'),
        (7.0, b"[DONE]"),
    ]
    ends = [take(answer, chat.read(payload), now) for now, payload in chunks]
    assert ends == [False, False, False, False, True, False, True]
    assert answer.moments == [2.0, 3.0, 4.0]
    assert (answer.text, answer.token_ids, answer.ended) == ("A\u00fc", [5, 6, 7], 5.0)
    assert (answer.input_tokens, answer.output_tokens, answer.finish_reason) == (9, 3, "length")
    assert answer.tpot == pytest.approx(1.5)


def test_log_probabilities_give_tokens_and_margins() -> None:
    found = Completions().read(
        b'{"choices":[{"index":0,"text":" a","logprobs":{"tokens":[" a"],"token_logprobs":[-0.5],'
        b'"top_logprobs":[{" a":-0.5,"b":-1.75}],"text_offset":[0]},"finish_reason":null}]}'
    )
    assert (found.tokens, found.margins) == ([" a"], [1.25])
    found = Chat().read(
        b'{"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.5,'
        b'"top_logprobs":[{"token":"a","logprob":-0.5},{"token":"b","logprob":-0.75}]}]}}]}'
    )
    assert (found.tokens, found.margins) == (["a"], [0.25])


def test_ollama_lines() -> None:
    answer, ollama = Answer(0, sent=0.0), Ollama()
    assert not take(answer, ollama.read(b'{"model":"m","response":"Hi","done":false}'), 1.0)
    last = b'{"response":"","done":true,"done_reason":"length","prompt_eval_count":4,"eval_count":2}'
    assert take(answer, ollama.read(last), 2.0)
    assert (answer.text, answer.input_tokens, answer.output_tokens, answer.ended) == ("Hi", 4, 2, 2.0)
    assert ollama.read(b'{"error":"no such model"}').error == "no such model"
