"""Compiles the CPU kernels while Quire is built; without a compiler Quire installs all the same. See pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

HERE = Path(__file__).parent / "kernels" / "cpu"


def _builder() -> ModuleType:
    """kernels/cpu/build.py, which imports nothing of ours, by its path: Quire is not installed yet."""
    spec = importlib.util.spec_from_file_location("quire_build_cpu_kernels", HERE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildKernels(Command):
    """Compiles into the wheel, or beside the sources for an editable install; says so in one line when it cannot."""

    description = "compile the CPU kernels"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = [("build-lib=", "b", "the folder to build in")]
    editable_mode = False
    build_lib: str | None = None

    def initialize_options(self) -> None:
        """Nothing to set beyond the class's own."""

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        builder = _builder()
        assert self.build_lib is not None
        folder = HERE if self.editable_mode else Path(self.build_lib, "quire", "kernels", "cpu")
        try:
            builder.build(folder / builder.LIBRARY_NAME)
        except builder.NotBuilt as problem:
            print(
                f"warning: the compiled CPU kernels were not built ({problem}); PyTorch serves instead", file=sys.stderr
            )

    def get_outputs(self) -> list[str]:
        return []

    def get_source_files(self) -> list[str]:
        return sorted(str(path.relative_to(Path(__file__).parent)) for path in (HERE / "native").iterdir())


class WithKernels(Distribution):
    """A wheel with compiled kernels belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return True


build.sub_commands.append(("build_kernels", None))
setup(cmdclass={"build_kernels": BuildKernels}, distclass=WithKernels)
