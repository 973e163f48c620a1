"""Triton's interpreter: kernels run with NumPy, on the CPU, slowly. For tests of what kernels compute."""

from __future__ import annotations

from typing import Any

import triton
from triton.runtime import interpreter


def is_on() -> bool:
    """Whether kernels of this process are interpreted: TRITON_INTERPRET was 1 when Triton was first imported."""
    return bool(triton.knobs.runtime.interpret)


def read_scalars() -> None:
    """Let loop bounds be computed: Triton 3.6 asks int() of an array of one element, which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor
    if patch.__module__ == __name__:
        return

    def with_scalars(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = with_scalars
