"""config.yaml: a flat mapping of setting names to values, read with PyYAML's safe loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from quire.engine.errors import UsageError


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one settings file; dashes in keys become underscores. Raises UsageError that names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        loaded = yaml.load(text, _Loader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: {error.problem}; expected plain `key: value` lines") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: {error}; expected plain `key: value` lines") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise UsageError(f"{path}: expected `key: value` lines, found {type(loaded).__name__}")
    return {key.replace("-", "_"): value for key, value in loaded.items()}
