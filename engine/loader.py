"""From a model folder or a GGUF file to a decoder: all names accounted for, then each tensor read, packed and freed."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.gguf_file import GgufFile, is_gguf
from quire.engine.gguf_weights import GgufWeights
from quire.engine.models.config import ModelConfig, WeightNames
from quire.engine.models.decoder import Decoder
from quire.engine.models.json_file import read_json_object
from quire.engine.models.shapes import weight_shapes
from quire.engine.models.weights import OnDevice, WeightSource
from quire.engine.safetensors_file import FLOAT_DTYPES, SafetensorsFile, TensorEntry, list_names
from quire.kernels import Kernels

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 * 1024 * 1024
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = "convert the weights to safetensors; for most models the hub has them, or a pull request with them"

ProgressCallback = Callable[[int, int], None]


def load_model(
    folder: Path,
    config: ModelConfig,
    kernels: Kernels,
    *,
    dtype: torch.dtype,
    load_format: Literal["auto", "dummy"] = "auto",
    seed: int = 0,
    check_weights: bool = False,
    progress: ProgressCallback = lambda done, total: None,
    num_positions: int | None = None,
    model_name: str | None = None,
    kept: Sequence[str] = (),
) -> Decoder:
    """Load the weights in `folder`, or make random ones (load_format "dummy").

    `progress` hears (bytes done, bytes in all). `num_positions` bounds the longest sequence that will be served.
    `kept`: kinds of quantized matrices that are packed as the file has them.
    Raises ModelError for any fault of the files (M09, M10, M11, M14, M16). Whether there is room for the weights,
    `quire.engine.plan` has said before.
    """
    model = model_name or folder.name
    expected = weight_shapes(config)
    dtypes = Dtypes(dtype, kernels.activation_dtype(dtype))
    with ExitStack() as stack:
        weights: WeightSource
        if load_format == "dummy":
            num_bytes = sum(math.prod(shape) for shape in expected.values()) * dtype.itemsize
            weights = DummyWeights(seed, dtypes, num_bytes, progress, kernels.device)
        elif is_gguf(folder):
            file = stack.enter_context(closing(GgufFile(folder, model)))
            weights = GgufWeights(file, config, dtypes.of, check_weights, progress, kept)
        else:
            files = [stack.enter_context(closing(file)) for file in _open_files(folder, model)]
            entries = match_names(files, expected, config.names, model)
            weights = FileWeights(entries, dtypes, check_weights, progress)
        if kernels.device.type != "cpu":
            weights = OnDevice(weights, kernels.device)
        return Decoder(config, kernels, weights, num_positions=num_positions)


@dataclass(frozen=True)
class Dtypes:
    """What weights are handed out in."""

    matrices: torch.dtype
    vectors: torch.dtype

    def of(self, shape: tuple[int, ...]) -> torch.dtype:
        """For a tensor of this shape."""
        return self.vectors if len(shape) == 1 else self.matrices


class FileWeights:
    """Weights from safetensors files, read one at a time."""

    def __init__(
        self,
        entries: dict[str, tuple[SafetensorsFile, TensorEntry]],
        dtypes: Dtypes,
        check: bool,
        progress: ProgressCallback,
    ) -> None:
        self.entries, self.dtypes, self.check, self.progress = entries, dtypes, check, progress
        self.bytes_taken = self._bytes_read = 0
        self._bytes_total = sum(entry.end - entry.begin for _, entry in entries.values())

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read, check, cast. Raises ModelError when the file has shrunk, or `check` finds NaN or Inf."""
        file, entry = self.entries[name]
        tensor = file.read(entry, self._count)
        if self.check and not torch.isfinite(tensor).all():
            raise file.fault("NaN or Inf in the weights", f"tensor {entry.name}", "download the model again")
        tensor = tensor.to(self.dtypes.of(shape))
        self.bytes_taken += tensor.nbytes
        return tensor

    def _count(self, num_bytes: int) -> None:
        self._bytes_read += num_bytes
        self.progress(self._bytes_read, self._bytes_total)


class DummyWeights:
    """Random weights that keep activations near unit size; a tensor depends on seed, name and kind of device alone."""

    def __init__(
        self,
        seed: int,
        dtypes: Dtypes,
        total: int,
        progress: ProgressCallback,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a value)
    ) -> None:
        self.seed, self.dtypes, self.total, self.progress, self.device = seed, dtypes, total, progress, device
        self.bytes_taken = self._bytes_made = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Matrices normal with deviation 1 / sqrt(columns), norm weights one, biases zero."""
        if len(shape) == 1:
            tensor = torch.full(shape, 0.0 if name.endswith(".bias") else 1.0, device=self.device)
        else:
            generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode(), self.seed & 0xFFFFFFFF))
            tensor = torch.randn(shape, generator=generator, device=self.device).mul_(shape[-1] ** -0.5)
        tensor = tensor.to(self.dtypes.of(shape))
        self.bytes_taken += tensor.nbytes
        self._bytes_made += tensor.numel() * self.dtypes.matrices.itemsize
        self.progress(self._bytes_made, self.total)
        return tensor


def _open_files(folder: Path, model: str) -> list[SafetensorsFile]:
    """The whole model's file, or the shards that the index names, opened and checked."""
    names = [WEIGHTS_FILE] if (folder / WEIGHTS_FILE).exists() else _shard_names(folder, model)
    files: list[SafetensorsFile] = []
    with ExitStack() as stack:
        for name in names:
            files.append(stack.enter_context(closing(SafetensorsFile(folder / name, model))))
        stack.pop_all()  # all are sound: the caller closes them
    return files


def _shard_names(folder: Path, model: str) -> list[str]:
    if not (folder / INDEX_FILE).exists():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ModelError(model, "no safetensors weights", pickles[0], "pickle files are never loaded", CONVERT)
        raise ModelError(
            model, "no weights", WEIGHTS_FILE, f"neither it nor {INDEX_FILE} is there", "download the whole model"
        )
    weight_map = read_json_object(folder, INDEX_FILE, model, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelError(
            model, "bad index", INDEX_FILE, "weight_map is no object of name -> file", "download the file again"
        )
    names = sorted(set(weight_map.values()))
    strange = [name for name in names if "/" in name or "\0" in name or not name.endswith(".safetensors")]
    if strange:
        raise ModelError(
            model,
            "bad index",
            INDEX_FILE,
            f"{strange[0][:80]!r} is no safetensors file of this folder",
            "download the file again",
        )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(
            model,
            "shard missing",
            missing[0],
            f"{len(missing)} of {len(names)} files that {INDEX_FILE} names are not there: {list_names(missing)}",
            "download the whole model",
        )
    return names


def match_names(
    files: list[SafetensorsFile], expected: dict[str, tuple[int, ...]], names: WeightNames, model: str
) -> dict[str, tuple[SafetensorsFile, TensorEntry]]:
    """Expected name -> where it lies; a file's name may lack the family's prefix.

    Raises ModelError when a tensor is missing, has another shape or a dtype that is no float, stands twice, or is not
    needed and not ignorable (M14).
    """
    found: dict[str, tuple[SafetensorsFile, TensorEntry]] = {}
    twice, extra = [], []
    for file in files:
        for entry in file.entries.values():
            name = entry.name if entry.name in expected else names.prefix + entry.name
            if name in found:
                twice.append(entry.name)
            elif name in expected:
                found[name] = (file, entry)
            elif not any(re.fullmatch(pattern, entry.name) for pattern in names.ignorable):
                extra.append(entry.name)
    missing = [name for name in expected if name not in found]
    shapes = [
        f"{name} is {list(entry.shape)}, expected {list(expected[name])}"
        for name, (_, entry) in found.items()
        if entry.shape != expected[name]
    ]
    dtypes = [f"{name} is {entry.dtype}" for name, (_, entry) in found.items() if entry.dtype not in FLOAT_DTYPES]
    config_fix = "check that config.json and the weights belong to the same model, or download it again"
    for what, faults, fix in (
        ("tensors missing", missing, config_fix),
        ("wrong tensor shapes", shapes, config_fix),
        ("unsupported dtype", dtypes, "use weights in bfloat16, float16 or float32"),
        ("tensors stored twice", twice, "download the model again"),
        ("unknown tensors", extra, config_fix),
    ):
        if faults:
            file_name = files[0].path.name if len(files) == 1 else INDEX_FILE
            raise ModelError(model, what, file_name, f"{len(faults)}: {list_names(faults)}", fix)
    return found
