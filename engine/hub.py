"""Downloading from the Hugging Face hub, through its own library: the only module that reaches the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import errors, snapshot_download
from tqdm import tqdm

from quire.engine.errors import ModelError

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
    """The snapshot of a hub name in the cache, complete.

    `progress` hears (name, bytes done, bytes in all). `inspect` sees the folder when it holds config.json and, unless
    it raises, the rest is fetched. Raises ModelError when the hub does not know the name or the
    revision, wants an agreement, or is out of reach and the cache does not hold the model.
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
        inspect(fetch(("config.json",)))
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
