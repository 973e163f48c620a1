"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

Builds the library and the C driver beside this file with both, and runs the driver for each instruction set that this
CPU has. Nothing but the standard library is imported, and what is here of Quire that needs nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quire.kernels.cpu import build, library

HERE = Path(__file__).parent
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")


def main() -> int:
    """The driver's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / build.LIBRARY_NAME
        built = build.build(target, extra=SANITIZE)
        here = [isa for isa in built if library.NEEDS[isa] <= library.cpu_flags()]
        sources = [HERE / "native_driver.c", *sorted((HERE / "native").glob("*.c"))]
        driver = Path(folder) / "driver"
        command = [*build.compiler(), *SANITIZE, "-Wall", "-Wextra", "-o", driver, *sources, target, "-ldl", "-lm"]
        subprocess.run([*command, f"-Wl,-rpath,{folder}"], check=True)
        return subprocess.run(
            [driver, *here], env={"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", **os.environ}
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
