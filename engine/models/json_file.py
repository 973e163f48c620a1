"""Reading the JSON files of a model folder: small, checked, with the place of the fault in the message."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from quire.engine.errors import ModelError

MAX_JSON_BYTES = 4 * 1024 * 1024


def read_json_object(folder: Path, file: str, model: str, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in `folder / file`.

    Raises ModelError when the file is missing, unreadable, empty, larger than `max_bytes`, no UTF-8, no JSON, or no
    object. `model` is the name that messages use.
    """

    def fault(what: str, why: str, fix: str = "download the model again") -> ModelError:
        return ModelError(model, what, file, why, fix)

    path = folder / file
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise fault("no regular file", "a folder, a pipe or a device stands in its place")
        if status.st_size > max_bytes:
            raise fault("file too large", f"{status.st_size} bytes, expected at most {max_bytes}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise fault("file missing", "the model folder has no such file", "give the folder of a whole model") from None
    except OSError as error:
        raise fault("file unreadable", error.strerror or str(error), "check the file's permissions") from None
    if not data.strip():
        raise fault("file empty", "expected a JSON object")
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise fault("bad JSON", f"line {error.lineno}:{error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise fault("bad JSON", f"no UTF-8 at byte {error.start}") from None
    except (RecursionError, ValueError) as error:
        raise fault("bad JSON", str(error)) from None
    if not isinstance(value, dict):
        raise fault("bad JSON", f"expected an object, found {type(value).__name__}")
    return value
