"""Downloading from the Hugging Face hub, through its own library: the only module that reaches the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, errors, snapshot_download
from tqdm import tqdm

from quire.engine.errors import ModelError
from quire.engine.gguf_file import SUFFIX

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm

DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
"""What is fetched from the hub; never code, never pickles."""
LEFT_OUT = ("*/*", "consolidated*.safetensors")
"""Folders (other formats of the same weights), and a second copy of them that some models have."""


def download(
    name: str,
    revision: str | None,
    download_dir: str | None,
    progress: Callable[[str, int, int], None],
    inspect: Callable[[Path], object],
) -> Path:
    """The snapshot of a hub name in the cache, complete; or the one GGUF file of a repository without config.json.

    `progress` hears (name, bytes done, bytes in all). `inspect` sees the folder when it holds config.json and, unless
    it raises, the rest is fetched. Raises ModelError when the hub does not know the name or the revision, wants an
    agreement, or is out of reach and the cache does not hold the model; or when there are several GGUF files.
    """
    bar = type("Bar", (_ProgressBar,), {"report": staticmethod(partial(progress, name))})

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=list(patterns),
                ignore_patterns=list(LEFT_OUT),
                tqdm_class=bar,
            )
        )

    try:
        folder = fetch(("config.json",))
        if not (folder / "config.json").exists() and (file := _gguf_file(name, revision, folder)):
            return fetch((file,)) / file
        inspect(folder)
        return fetch(DOWNLOADED)
    except errors.GatedRepoError:
        why, fix = "the hub wants an agreement for it", "accept it on the model's page and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        why, fix = f"the hub has no revision {revision!r} of it", "check --revision"
    except errors.RepositoryNotFoundError:
        why, fix = "neither a folder nor known to the hub", "check the name; for a private model set HF_TOKEN"
    except errors.LocalEntryNotFoundError:
        why = "the hub cannot be reached and the cache does not hold it"
        fix = "check HF_ENDPOINT, HF_HUB_OFFLINE and the network, or give a local folder"
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        why, fix = str(error).splitlines()[0][:200] if str(error) else type(error).__name__, "try again"
    raise ModelError(name, "download failed", "config.json", why, fix)


def _gguf_file(name: str, revision: str | None, folder: Path) -> str | None:
    """The GGUF file of a repository: the one in the cache, else the only one that the hub has of it."""
    files = [path.name for path in folder.glob(f"*{SUFFIX}")]
    if len(files) != 1:
        listed = HfApi().list_repo_files(name, revision=revision)
        files = [file for file in listed if file.endswith(SUFFIX) and "/" not in file]
    if len(files) > 1:
        why = f"the hub has {len(files)} of them: {', '.join(files[:20])}"
        fix = f"fetch one with `hf download {name} FILE`, and give the path of that file"
        raise ModelError(name, "several GGUF files", files[0], why, fix)
    return files[0] if files else None


class _ProgressBar(Bar):
    """What the hub's library takes for a bar: tells `report` (bytes done, bytes in all), draws nothing."""

    report: Callable[[int, int], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"disable": True}))
        self.done = options.get("initial") or 0
        self.counts_bytes = options.get("unit") == "B"

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more."""
        self.done += n or 0
        if self.counts_bytes:
            self.report(int(self.done), int(max(self.total or 0, self.done)))
        return None
