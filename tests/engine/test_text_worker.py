"""Template and tokenizer work in a process that is killed when it does not end."""

import os
import resource
from pathlib import Path

import pytest
from support.tokenizers import STARTER, sentencepiece_backend, starter_tokenizer, write_folder

from quire.engine.errors import ModelError
from quire.engine.text_worker import (
    EncodeChat,
    EncodeText,
    Load,
    TextWorker,
    TextWorkTimeout,
    TrialRender,
    check_templates,
)
from quire.engine.tokenizer import Tokenizer
from quire.engine.tokenizer_files import read_tokenizer_files

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_the_worker_gives_what_the_tokenizer_gives() -> None:
    tokenizer = starter_tokenizer()
    worker = TextWorker(Load(tokenizer.files, "starter"))
    messages = [{"role": "user", "content": "<|im_end|> " + "long text. " * 20_000}]
    assert worker.call(EncodeChat(messages)).token_ids == tokenizer.encode_chat(messages)
    text = "".join(map(chr, range(32, 3000)))
    assert worker.call(EncodeText(text, True)).token_ids == tokenizer.encode(text)
    refused = worker.call(EncodeChat([{"role": "wizard", "content": "x"}]))
    assert refused.template_error is not None
    assert "Unknown role wizard" in refused.template_error
    worker.close()


def test_what_does_not_end_is_killed_and_the_next_call_works() -> None:
    worker = TextWorker()
    assert worker.call(TrialRender("x", {})).template_error is None
    assert worker._process is not None
    first = worker._process.pid
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(TextWorkTimeout, match=r"within 0\.2 s"):
        worker.call(TrialRender(LOOP, {}), 0.2)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 2
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert worker.call(TrialRender("x", {})).template_error is None
    worker.close()


def test_a_template_that_fills_the_memory_ends_itself() -> None:
    worker = TextWorker()
    result = worker.call(TrialRender("{{ 'a' * 10 ** 11 }}", {}), 10.0)
    assert result.template_error is not None
    assert "MemoryError" in result.template_error
    worker.close()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP, r"killed: no answer within 0\.3 s"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|__class__|attribute"),
        ("{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}", "more than 4194304 characters"),
    ],
)
def test_hostile_templates_stop_the_start(tmp_path: Path, template: str, message: str) -> None:
    files = read_tokenizer_files(write_folder(tmp_path, sentencepiece_backend(), chat_template=template), "evil")
    with pytest.raises(ModelError, match=message) as error:
        check_templates(files, "evil", 0.3)
    assert "chat template" in str(error.value)


def test_a_template_may_refuse_the_trial(tmp_path: Path) -> None:
    source = "{{ raise_exception('a system message is needed') }}"
    assert Tokenizer.from_folder(
        write_folder(tmp_path, sentencepiece_backend(), chat_template=source)
    ).has_chat_template
    assert Tokenizer.from_folder(STARTER).has_chat_template
