"""Flags, environment and config.yaml: rows C01 to C07, precedence, units, and the list of promised flags."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.source_tree import sources

from quire.engine.config import EngineConfig
from quire.engine.errors import UsageError
from quire.server import not_built
from quire.server.help import serve_help
from quire.server.layers import FIELDS, flag_name, is_switch, load_settings
from quire.server.parsing import parse_size
from quire.server.settings import ServerSettings, packaged_defaults

KEY = "sentinel-0123456789abcdef"

PROMISED = """
--host --port --uds --health-port --device --api-key --api-key-file --allow-unauthenticated --served-model-name
--tokenizer --revision --dtype --quantization --load-format --download-dir --max-model-len --gpu-memory-utilization
--kv-cache-memory-bytes --kv-cache-dtype --block-size --enable-prefix-caching --num-gpu-blocks-override --max-num-seqs
--max-num-batched-tokens --long-prefill-token-threshold --scheduling-policy --max-num-queued-reqs --stream-interval
--tensor-parallel-size --enforce-eager --seed --generation-config --max-logprobs --chat-template --tool-call-parser
--reasoning-parser --enable-auto-tool-choice --lora-modules --enable-lora --speculative-config --target-itl-ms
--batch-invariant --strict --sse-keep-alive --metrics-prefix --disable-log-stats --enable-log-requests
--shutdown-timeout --root-path --ssl-keyfile --ssl-certfile --allowed-origins --config
"""
"""The flags of `quire serve` that people paste; each works or is refused with a sentence."""

OWN = {
    "--kernels", "--threads", "--check-weights", "--max-tokens", "--completions-max-tokens", "--debug",
}  # fmt: skip


def refusal(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(arguments, environment or {})
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_promised_flag_works_or_is_refused() -> None:
    built = {flag_name(name) for name in FIELDS if name != "model"}
    refused = {f"--{name}" for name in not_built.FLAGS}
    assert built | refused == set(PROMISED.split()) | OWN
    assert not built & refused


@pytest.mark.parametrize("name", not_built.FLAGS)
def test_a_flag_that_is_not_built_is_refused_in_every_layer(name: str, tmp_path: Path) -> None:
    variable = "QUIRE_" + name.replace("-", "_").upper()
    config = tmp_path / "my.yaml"
    config.write_text(f"{name.replace('-', '_')}: 1\n")
    for message in (
        refusal([f"--{name}", "1"]),
        refusal([f"--{name}=1"]),
        refusal([], {variable: "1"}),
        refusal(["--config", str(config)]),
    ):
        assert not_built.FLAGS[name] in message


def test_a_short_flag_that_is_not_built_is_refused_by_the_name_that_was_given() -> None:
    assert refusal(["-tp", "2"]) == f"-tp: {not_built.FLAGS['tensor-parallel-size']}"


def test_two_keys_are_served_fairly_unless_the_policy_is_named() -> None:
    keys = ["--api-key", "k" * 16, "l" * 16]
    for arguments, policy in (
        ([], "fcfs"),
        (keys[:2], "fcfs"),
        (keys, "fair"),
        ([*keys, "--scheduling-policy", "fcfs"], "fcfs"),
        (["--scheduling-policy", "fair"], "fair"),
    ):
        assert load_settings(arguments, {}).to_engine_config("/f", None).scheduling_policy == policy


def test_a_latency_target_is_a_positive_number_of_milliseconds() -> None:
    assert load_settings(["--target-itl-ms", "37.5"], {}).to_engine_config("/f", None).target_itl_ms == 37.5
    for wrong in ("0", "-1", "nan", "inf", "fast"):
        assert "--target-itl-ms: expected milliseconds, more than 0" in refusal(["--target-itl-ms", wrong])


def test_config_yaml_holds_the_default_of_every_field_and_nothing_else() -> None:
    assert set(packaged_defaults()) == set(FIELDS)
    assert (packaged_defaults()["max_tokens"], packaged_defaults()["completions_max_tokens"]) == (2048, 16)
    assert load_settings([], {}) == ServerSettings()


def test_precedence_flag_environment_file_default(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("port: 1003\nmax-tokens: 7\nblock_size: 32\n")
    environment = {"QUIRE_PORT": "1002", "QUIRE_CONFIG": str(config), "QUIRE_MAX_TOKENS": ""}
    settings = load_settings(["--port", "1001"], environment)
    assert (settings.port, settings.max_tokens, settings.block_size) == (1001, 7, 32)
    assert load_settings([], environment).port == 1002
    assert load_settings(["--config", str(config)], {}).port == 1003
    assert load_settings([], {}).port == 8000


def test_the_current_directory_is_never_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("port: 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings([], {}).port == 8000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("4k", 4000),
        ("4K", 4096),
        ("8GiB", 8 << 30),
        ("2GB", 2 * 10**9),
        ("1.5k", 1500),
        ("512MiB", 512 << 20),
    ],
)
def test_sizes_take_units(text: str, value: int) -> None:
    assert parse_size(text) == value
    assert load_settings(["--kv-cache-memory-bytes", text], {}).kv_cache_memory_bytes == value


@pytest.mark.parametrize("text", ["", "k", "4 q", "0.0003k", "4kk", "1e3", "0x10", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_size(text)


def test_flags_as_people_paste_them() -> None:
    line = "Qwen/Qwen3-0.6B --max_model_len 4K --served-model-name a b --no-enable-prefix-caching --allowed-origins"
    settings = load_settings([*line.split(), '["https://a.example"]', "--api-key", KEY], {})
    assert settings.model == "Qwen/Qwen3-0.6B"
    assert settings.max_model_len == 4096
    assert settings.served_model_name == ("a", "b")
    assert settings.allowed_origins == ("https://a.example",)
    assert not settings.enable_prefix_caching
    assert load_settings(["--max-model-len", "auto"], {}).max_model_len is None


USAGE = [
    (["--prot", "1"], "did you mean --port"),  # C01
    (["--zzz"], "unknown flag --zzz; `quire serve --help`"),
    (["--port"], "--port"),
    (["one", "two"], "one model at a time: 'two'"),
    (["--port", "-1"], "--port: expected a whole number from 0 to 65535, found '-1'"),  # C02
    (["--port", "70000"], "found '70000'"),
    (["--port", "abc"], "found 'abc'"),
    (["--max-model-len", "0"], "--max-model-len: expected a whole number of at least 1"),  # C03
    (["--block-size", "0"], "power of two from 1 to 256"),  # C05
    (["--block-size", "7"], "power of two from 1 to 256"),
    (["--block-size", "1000000"], "power of two from 1 to 256"),
    (["--max-num-batched-tokens", "8", "--max-num-seqs", "9"], "--max-num-batched-tokens 8: below --max-num-seqs 9"),
    (["--dtype", "bfloat61"], "did you mean bfloat16"),
    (["--scheduling-policy", "prioroty"], "did you mean priority"),
    (["--shutdown-timeout", "inf"], "seconds"),
    (["--root-path", "llm/"], "a path such as /llm"),
    (["--served-model-name", ""], "expected a list of names"),
    (["--host", "0.0.0.0"], "--allow-unauthenticated"),  # C07
    (["--host", "::"], "--api-key-file"),
    (["--host", "example.org"], "QUIRE_API_KEY"),
    (["--ssl-keyfile", "x.pem"], "https needs both"),
    (["--chat-template", "/nowhere.jinja"], "no such file"),
    (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
]


@pytest.mark.parametrize(
    ("arguments", "part"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_usage_errors(arguments: list[str], part: str) -> None:
    assert part in refusal(arguments)


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_block_sizes_that_work(size: int) -> None:
    assert load_settings(["--block-size", str(size)], {}).block_size == size


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("prot: 1\n", ["unknown key prot; did you mean port?"]),
        ("port: [1]\n", ["port: expected a whole number from 0 to 65535, found [1]"]),
        ("port: true\n", ["port: expected a whole number", "found True"]),
        ("host: 7\n", ["host: expected text, found 7"]),
        ("strict: maybe\n", ["strict: expected true or false, found 'maybe'"]),
        ("host: a\nhost: b\n", ["line 2: the key host stands twice"]),
        ("host: !!python/object/apply:os.system ['true']\n", ["line 1", "python/object"]),
        ("- port\n", ["found list"]),
        ("port: 'x\n", ["line"]),
        ("config: other.yaml\n", ["unknown key config"]),
    ],
)
def test_files_that_cannot_be_honoured(text: str, parts: list[str], tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(text)
    message = refusal(["--config", str(config)])
    assert str(config) in message
    assert all(part in message for part in parts), message


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("# nothing\n")
    assert load_settings(["--config", str(config)], {}) == ServerSettings(config=str(config))


def test_the_port_of_a_kubernetes_service_is_explained_and_outranked() -> None:
    environment = {"QUIRE_PORT": "tcp://10.0.0.1:80", "QUIRE_SERVICE_HOST": "10.0.0.1"}
    message = refusal([], environment)
    assert "QUIRE_PORT" in message
    assert "Kubernetes" in message
    assert load_settings(["--port", "9"], environment).port == 9


KEY_FILES = [
    ("", "holds no key"),
    ("# only a comment\n\n", "holds no key"),
    (f"{KEY[:12]}\n", "12 characters; expected at least 16"),
    (f"a {KEY}\na {KEY}x\n", "line 2: the name a stands twice"),
    (f"a {KEY}\nb {KEY}\n", "line 2: the same key as --api-key-file"),
    (f"a {KEY} more\n", "line 1: expected `name key` or `key`"),
]


@pytest.mark.parametrize(("text", "part"), KEY_FILES)
def test_key_files_that_are_refused(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    message = refusal(["--api-key-file", str(path)])
    assert part in message
    assert KEY[:12] not in message


def test_a_key_file_must_exist_and_be_private(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert "cannot be read" in refusal(["--api-key-file", str(path)])
    path.write_text(f"{KEY}\n")
    path.chmod(0o644)
    message = refusal(["--api-key-file", str(path)])
    assert "chmod 600" in message
    assert KEY not in message


def test_keys_open_the_way_beyond_loopback_and_are_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# callers\nalice {KEY}\n{KEY}-two\n")
    path.chmod(0o600)
    settings = load_settings(["--host", "0.0.0.0", "--api-key-file", str(path)], {"QUIRE_API_KEY": KEY + "-three"})
    names = [key.key_id for key in settings.read_api_keys()]
    assert len(names) == 3
    assert "alice" in names
    assert KEY not in repr(settings) + repr(settings.read_api_keys())
    assert KEY[:12] not in refusal(["--api-key", KEY[:12]])


@pytest.mark.parametrize(
    "arguments", [["--host", "127.0.0.1"], ["--host", "::1"], ["--host", "localhost"], ["--uds", "/s"]]
)
def test_loopback_needs_no_key(arguments: list[str]) -> None:
    assert load_settings(arguments, {}).is_local()
    assert not load_settings(["--host", "0.0.0.0", "--allow-unauthenticated"], {}).is_local()


def test_the_engine_gets_its_part() -> None:
    settings = load_settings(["some/model", "--block-size", "32", "--num-gpu-blocks-override", "9", "--seed", "5"], {})
    config = settings.to_engine_config("/folder", 300)
    assert config == EngineConfig(
        model="/folder", model_name="some/model", tokenizer_vocab_size=300, block_size=32, num_blocks_override=9, seed=5
    )
    assert ServerSettings().to_engine_config("/f", None).model_name == "starter"


def test_defaults_agree_with_those_of_the_engine() -> None:
    ours = ServerSettings().to_engine_config("/f", None)
    assert ours == EngineConfig(model="/f", model_name="starter")


def test_help_has_one_line_a_flag_with_its_default() -> None:
    page = serve_help(bold=False)
    assert all(len(line) <= 120 for line in page.splitlines())
    for name in FIELDS:
        if name == "model":
            continue
        flag = flag_name(name)
        lines = [line for line in page.splitlines() if re.match(rf"  (--\[no-\])?-*{flag[2:]}( |$)", line)]
        assert len(lines) == 1, flag
        default = packaged_defaults()[name]
        if default not in (None, [], "") and not is_switch(name):
            assert lines[0].endswith(f"[{default:g}]" if isinstance(default, float) else f"[{default}]")


def test_every_setting_is_read_by_somebody() -> None:
    code = "".join(source.path.read_text() for name, source in sources().items() if name.startswith("quire.server"))
    read = {name for owner in ("settings", "self") for name in re.findall(rf"\b{owner}\.(\w+)", code)}
    read |= set(EngineConfig.__struct_fields__)
    # Read by the layers; and a choice of one.
    assert set(FIELDS) - read - {"config", "debug", "tool_call_parser"} == set()
