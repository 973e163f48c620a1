"""Finding a model, and the faults of its folder and its JSON files (RELIABILITY M01-M08, M20, M22, F61)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import tiny_checkpoint
from support.hub import COMMIT, stub_hub

from quire.engine.errors import ModelError
from quire.engine.model_folder import GenerationDefaults, check_folder, read_generation_config, resolve_model
from quire.engine.models.architectures import read_model_config, supported_architectures
from quire.engine.models.config import ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def read(folder: Path, **overrides: Any) -> ModelConfig:
    values = {name: value for name, value in (LLAMA | overrides).items() if value is not ...}
    return read_model_config(write_config(folder, values), "tiny")


def failure(folder: Path, **overrides: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read(folder, **overrides)
    message = str(caught.value)
    assert message.startswith("model tiny: ")
    assert "(config.json): " in message
    assert "; fix: " in message
    assert str(folder) not in message
    return message


# --- config.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "file missing"),
        (b"", "file empty"),
        (b"  \n", "file empty"),
        (b'{"a": 1,\n  "b": }', "line 2:8"),
        (b"[1, 2]", "expected an object, found list"),
        (b"null", "found NoneType"),
        (b'{"a": "\xff"}', "no UTF-8 at byte 7"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad JSON"),
    ],
)
def test_bad_config_file(content: bytes | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        read_model_config(tmp_path, "tiny")


def test_config_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ModelError, match=r"1073741824 bytes, expected at most 4194304"):
        read_model_config(tmp_path, "tiny")


def test_config_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="no regular file"):
        read_model_config(tmp_path, "tiny")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"architectures": ...}, "architecture missing"),
        ({"architectures": []}, "architecture missing"),
        ({"architectures": "LlamaForCausalLM"}, "architecture missing"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "unknown architecture .*GPT2LMHeadModel, LlamaForCausalLM"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of num_attention_heads 4"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected an integer from 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected an integer"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, expected an integer"),
        ({"hidden_size": True}, "hidden_size is True, expected an integer"),
        ({"hidden_size": ...}, "hidden_size is not given"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected an integer from 1 to 1024"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, expected an integer from 1 to 4194304"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings"),
        ({"head_dim": 10**6}, "head_dim is 1000000, expected an integer from 1 to 1024"),
        ({"head_dim": 15}, "rotate 15 features, expected an even number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a finite number above 0"),
        ({"rope_theta": 10**400}, "rope_theta is 1000.*expected a finite number"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', expected one of silu"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected true or false"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id is .*expected a token id or a list"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "unknown rope type .*'spiral', supported are default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is not given"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "rope_scaling.factor is -2"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor is .*a list of 8 numbers",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 64,
                }
            },
            "high_freq_factor is 4, expected more than low_freq_factor, 4",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "names awq.*use the same model's unquantized weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, "names gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "names fp8"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "names bitsandbytes"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn', supported are float32, bfloat16, float16"),
    ],
)
def test_bad_config_field(overrides: dict[str, Any], expected: str, tmp_path: Path) -> None:
    message = failure(tmp_path, **overrides)
    assert re.search(expected, message), message


def test_good_config(tmp_path: Path) -> None:
    config = read(tmp_path, torch_dtype="bfloat16", eos_token_id=[7, 2, 7], bos_token_id=1)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert (config.vocab_size, config.hidden_size, config.max_position_embeddings) == (100, 64, 128)
    assert (config.torch_dtype, config.eos_token_ids, config.bos_token_id) == ("bfloat16", (7, 2), 1)
    assert not config.warnings
    assert read(tmp_path, num_key_value_heads=None).num_kv_heads == 4


def test_windows_and_ropes_by_layer(tmp_path: Path) -> None:
    def windows(**overrides: Any) -> list[int | None]:
        return [layer.attention.window for layer in read(tmp_path, **overrides).layers]

    mistral, qwen2 = {"architectures": ["MistralForCausalLM"]}, {"architectures": ["Qwen2ForCausalLM"]}
    assert windows(**mistral) == [4096, 4096]
    assert windows(**mistral, sliding_window=None) == [None, None]
    assert windows(**mistral, sliding_window=8) == [8, 8]
    assert windows(**qwen2, sliding_window=8) == [None, None]
    assert windows(**qwen2, sliding_window=8, use_sliding_window=True, max_window_layers=1) == [None, 8]
    kinds = ["sliding_attention", "full_attention"]
    assert windows(**qwen2, sliding_window=8, use_sliding_window=True, layer_types=kinds) == [8, None]
    smollm3 = read(tmp_path, architectures=["SmolLM3ForCausalLM"], num_hidden_layers=5, pad_token_id=0)
    assert [layer.attention.rope is not None for layer in smollm3.layers] == [True, True, True, False, True]


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert read(tmp_path, rope_scaling=yarn).max_position_embeddings == 512


def test_python_code_is_never_imported(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = read(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert config.architecture == "LlamaForCausalLM"
    assert "modeling_evil.py" in config.warnings[0]
    assert "never imported" in config.warnings[0]
    assert not marker.exists()
    with pytest.raises(ModelError, match="unknown architecture"):
        read(tmp_path, architectures=["EvilForCausalLM"], auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})


def test_supported_architectures() -> None:
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"} <= set(
        supported_architectures()
    )


# --- generation_config.json ------------------------------------------------------------------------------------------


def test_generation_defaults(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == GenerationDefaults()
    values = {"eos_token_id": [2, 0], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "pad_token_id": 5}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    found = read_generation_config(tmp_path)
    assert found == GenerationDefaults(eos_token_ids=(2, 0), temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)
    for bad in ({"temperature": "hot"}, {"top_k": -1}, {"eos_token_id": "2"}, {"top_p": float("nan")}):
        (tmp_path / "generation_config.json").write_text(json.dumps(bad))
        with pytest.raises(ModelError, match=next(iter(bad))):
            read_generation_config(tmp_path)


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a local path must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_path_never_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "organisation" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("organisation/model") == tmp_path / "organisation" / "model"
    assert resolve_model(str(tmp_path)) == tmp_path
    for name in ("/no/such/folder", "./missing", "~/missing-folder", "a/b/c", "../x", "what is this?", "", "a--b/c"):
        with pytest.raises(ModelError, match="folder missing"):
            resolve_model(name)


@pytest.mark.usefixtures("no_network")
def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="the path names a file"):
        resolve_model(str(tmp_path / "file"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelError, match="folder unreadable"):
        resolve_model(str(tmp_path / "loop"))
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda *args: False)  # tests may run as root, whom no permission stops
    with pytest.raises(ModelError, match="permission denied"):
        resolve_model(str(tmp_path / "closed"))


def test_symbolic_links(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    outside.write_text("x")
    (folder / "real.json").write_text("{}")
    (folder / "inside.json").symlink_to("real.json")
    check_folder(folder, "tiny")
    (folder / "config.json").symlink_to(outside)
    with pytest.raises(ModelError, match=r"symbolic link \(config.json\): it leaves the model folder"):
        check_folder(folder, "tiny")
    check_folder(folder, "tiny", allow_symlinks=True)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(ModelError, match="its links form a loop"):
        check_folder(folder, "tiny")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("nowhere")
    with pytest.raises(ModelError, match="it links to nothing"):
        check_folder(folder, "tiny")


# --- the hub ---------------------------------------------------------------------------------------------------------

RESOLVE = """
import os
import sys
from quire.engine.errors import ModelError
from quire.engine.model_folder import resolve_model
heard = []

def inspect(folder):
    if os.environ.get("REFUSE"):
        raise ModelError("tiny", "refused", "config.json", " ".join(sorted(os.listdir(folder))), "none")

for name, revision in (argument.split("@") for argument in sys.argv[2:]):
    try:
        options = {"revision": revision or None, "download_dir": sys.argv[1]}
        print(resolve_model(name, progress=lambda *bytes: heard.append(bytes), inspect=inspect, **options))
    except ModelError as error:
        print(error)
print(heard[-1] if heard else None)
"""


def resolve_in_a_process(endpoint: str, cache: Path, *names: str, **environment: str) -> list[str]:
    """The hub's library reads its environment when it is imported, so each setting has a process of its own."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", RESOLVE, str(cache), *names],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_hub(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "models", "llama", num_hidden_layers=1)
    (model / "modeling.py").write_text("raise SystemExit")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    cache = tmp_path / "cache"
    with stub_hub({"quire/tiny": model}) as hub:
        refused, _ = resolve_in_a_process(hub.url, tmp_path / "other", "quire/tiny@", REFUSE="1")
        assert "refused (config.json): config.json; fix" in refused, "nothing else is there yet"
        assert not any("model.safetensors" in call for call in hub.asked)
        names = ("quire/tiny@", "quire/nothing@", "quire/tiny@no-such-branch")
        folder, unknown, revision, progress = resolve_in_a_process(hub.url, cache, *names)
        asked = list(hub.asked)
    assert Path(folder).name == COMMIT
    fetched = {path.name for path in Path(folder).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= fetched
    assert not {"modeling.py", "pytorch_model.bin", "onnx"} & fetched
    assert not any("modeling.py" in call or ".bin" in call for call in asked)
    assert "neither a folder nor known to the hub" in unknown
    assert "no revision 'no-such-branch'" in revision
    name, done, total = parse_progress(progress)
    assert name == "quire/tiny"
    assert done == total >= (model / "model.safetensors").stat().st_size
    check_folder(Path(folder), "quire/tiny")
    assert read_model_config(Path(folder), "quire/tiny").num_layers == 1

    offline = resolve_in_a_process("http://127.0.0.1:9", cache, "quire/tiny@", "quire/other@", HF_HUB_OFFLINE="1")
    assert offline[0] == folder, "without a hub the cache answers"
    assert "the hub cannot be reached" in offline[1]


def test_gguf_files_on_the_hub(tmp_path: Path) -> None:
    for name, files in (("one", ["a.gguf"]), ("many", ["a.gguf", "b.gguf"])):
        (tmp_path / name).mkdir()
        for file in ("README.md", *files):
            (tmp_path / name / file).write_bytes(b"GGUF")
    cache = tmp_path / "cache"
    with stub_hub({"quire/one": tmp_path / "one", "quire/many": tmp_path / "many"}) as hub:
        found, several, _ = resolve_in_a_process(hub.url, cache, "quire/one@", "quire/many@")
        assert not any("resolve/main/b.gguf" in call for call in hub.asked)
    assert Path(found).name == "a.gguf"
    assert Path(found).read_bytes() == b"GGUF"
    assert "several GGUF files (a.gguf): the hub has 2 of them: a.gguf, b.gguf; fix: fetch one" in several
    offline = resolve_in_a_process("http://127.0.0.1:9", cache, "quire/one@", HF_HUB_OFFLINE="1")
    assert offline[0] == found


def parse_progress(text: str) -> tuple[str, int, int]:
    """The printed progress."""
    name, done, total = text.strip("()").split(", ")
    return name.strip("'"), int(done), int(total)
