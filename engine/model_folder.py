"""Finding a model: a local folder, a GGUF file, or a name that the Hugging Face hub knows. Torch-free."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import ModelError
from quire.engine.gguf_file import SUFFIX, is_gguf
from quire.engine.models.fields import Fields
from quire.engine.models.json_file import read_json_object

STARTER = Path(str(importlib.resources.files("quire.models.starter")))
"""The folder of the model that ships with the package."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")

DownloadProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GenerationDefaults:
    """generation_config.json: how the model's makers want it sampled. None: not said."""

    eos_token_ids: tuple[int, ...] = ()
    """In place of config.json's, when not empty."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def resolve_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    progress: DownloadProgress = lambda name, done, total: None,
    inspect: Callable[[Path], object] = lambda folder: None,
    allow_symlinks: bool = False,
) -> Path:
    """A model's folder, or its GGUF file: an existing path, or else the snapshot of a hub name, downloaded if need be.

    A folder without safetensors and with one GGUF file stands for that file. A path never asks the hub. `progress`
    hears (what, bytes done, bytes in all); `inspect` sees a snapshot that holds config.json before its weights are
    downloaded, and may end that by raising. HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE and HF_TOKEN count. Raises
    ModelError (M01-M03, M22; unknown name; hub out of reach).
    """
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path and os.path.lexists(path):
        return find_local(path, name_or_path, allow_symlinks=allow_symlinks).absolute()
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or is_gguf(path)
    if looks_like_path or not HUB_NAME.fullmatch(name_or_path) or ".." in name_or_path or "--" in name_or_path:
        raise ModelError(
            name_or_path,
            "folder missing",
            "config.json",
            "no such folder or GGUF file, and no name that the hub could know",
            "check the path; a hub name has the form organisation/model",
        )
    from quire.engine.hub import download  # loads the hub's library, which a local folder does not need

    return download(name_or_path, revision, download_dir, progress, inspect)


def find_cached(name: str, *, revision: str | None = None, download_dir: str | None = None) -> Path:
    """The snapshot of a hub name in the cache, whole or not, without asking the hub. Raises ModelError without one."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.path.expanduser(download_dir or os.environ.get("HF_HUB_CACHE") or home / "hub"))
    folder = cache / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    snapshot = folder / "snapshots" / commit
    if not HUB_NAME.fullmatch(name) or not commit or not (snapshot / "config.json").is_file():
        raise ModelError(
            name,
            "not here",
            "config.json",
            f"no such folder or file, and the cache in {cache.name} does not hold that name",
            "give a folder, a config.json, or a hub name that was downloaded before",
        )
    return snapshot


def find_local(path: Path, model: str, *, allow_symlinks: bool = False) -> Path:
    """The folder or the GGUF file that an existing path stands for. Raises ModelError as `check_folder` does."""
    if is_gguf(path):
        return path
    check_folder(path, model, allow_symlinks=allow_symlinks)
    if (path / "config.json").exists() and any(path.glob("*.safetensors")):
        return path
    files = sorted(file for file in path.iterdir() if is_gguf(file))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:8])
        why = f"the folder holds {len(files)} of them: {names}"
        raise ModelError(model, "several GGUF files", files[0].name, why, "give the path of one of them")
    return files[0] if files else path


def check_folder(path: Path, model: str, *, allow_symlinks: bool = False) -> None:
    """Raises ModelError when `path` is no readable folder, or a link in it loops or leaves it (M01-M03, M22).

    Snapshots in the hub's cache link to their blobs beside them: those links are its own.
    """

    def fault(what: str, why: str, fix: str, file: str = "config.json") -> ModelError:
        return ModelError(model, what, file, why, fix)

    try:
        root = path.resolve(strict=True)
        files = sorted(root.iterdir())
    except NotADirectoryError:
        raise fault(
            "no folder", "the path names a file", f"give the folder that holds config.json, or a {SUFFIX} file"
        ) from None
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        why = getattr(error, "strerror", None) or "a loop of symbolic links"
        raise fault("folder unreadable", why, "check the path and its permissions") from None
    if not os.access(root, os.R_OK | os.X_OK):
        raise fault("folder unreadable", "permission denied", "give this user the right to read and enter it")
    if allow_symlinks:
        return
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    for file in files:
        if not file.is_symlink():
            continue
        try:
            target = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            why = "it links to nothing" if isinstance(error, FileNotFoundError) else "its links form a loop"
            raise fault("bad symbolic link", why, "put the file itself there", file.name) from None
        if not any(target.is_relative_to(allowed) for allowed in roots):
            raise fault("symbolic link", "it leaves the model folder", "put the file itself there", file.name)


def read_generation_config(folder: Path, model_name: str | None = None) -> GenerationDefaults:
    """The sampling defaults in generation_config.json; all None without that file. Raises ModelError when it is bad."""
    file = "generation_config.json"
    if not (folder / file).exists():
        return GenerationDefaults()
    model = model_name or folder.name
    fields = Fields(read_json_object(folder, file, model), model, file)
    return GenerationDefaults(
        eos_token_ids=fields.token_ids("eos_token_id"),
        temperature=fields.number("temperature", above=-1e-9) if fields.has("temperature") else None,
        top_k=fields.integer("top_k", minimum=0) if fields.has("top_k") else None,
        top_p=fields.number("top_p") if fields.has("top_p") else None,
        min_p=fields.number("min_p", above=-1e-9) if fields.has("min_p") else None,
        repetition_penalty=fields.number("repetition_penalty") if fields.has("repetition_penalty") else None,
        max_new_tokens=fields.integer("max_new_tokens") if fields.has("max_new_tokens") else None,
    )
