"""Tensors in, tensors out: the operations a model is made of, in several backends behind one interface.

The names of the interface are loaded when first used: whoever asks only whether the compiled kernels are there
(`quire.kernels.cpu.library`) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.kernels.interface import Activation, AttentionPlan, Kernels, Packed

__all__ = ["Activation", "AttentionPlan", "Kernels", "KernelsRefused", "Packed", "select"]
_OF_INTERFACE = ("Activation", "AttentionPlan", "Kernels", "Packed")


def __getattr__(name: str) -> Any:
    if name in _OF_INTERFACE:
        return getattr(import_module("quire.kernels.interface"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class KernelsRefused(ValueError):
    """A backend that cannot serve on this device; the text says why and what to choose instead."""


def select(name: str, device: str, precision: str | None = None, *, batch_invariant: bool = False) -> Kernels:
    """Choose a backend for a device, once, at start: name auto | reference | cpu | pytorch | triton, device cpu | cuda.

    `auto` is the fastest that is built for the device; on a CPU the compiled kernels, or PyTorch where they are not
    there; on a GPU triton. `precision` is what the weights of linear layers are packed in; None: as they come. Only
    the compiled kernels pack in another one. `batch_invariant` chooses between Triton's kernels; those on the CPU
    always are. Raises KernelsRefused with the reason.
    """
    if name == "triton" or (name == "auto" and device != "cpu"):
        return _in_triton(name, device, precision, batch_invariant)
    if name in ("cpu", "pytorch") and device != "cpu":
        raise KernelsRefused(f"kernels {name!r} on device {device!r}: they run on the CPU alone; use --device cpu")
    if name not in ("auto", "cpu", "pytorch", "reference"):
        raise KernelsRefused(f"kernels {name!r}: unknown; choose auto, reference, cpu, pytorch or triton")
    return _on_cpu(name, device, precision)


def _in_triton(name: str, device: str, precision: str | None, batch_invariant: bool) -> Kernels:
    """The kernels for GPUs; on the CPU only where Triton interprets them."""
    import torch

    where = f"kernels {name!r} on device {device!r}"
    try:
        from quire.kernels.triton import interpreter
    except ImportError as missing:
        raise KernelsRefused(f"{where}: Triton is not installed ({missing}); pip install 'quire[gpu]'") from missing
    if device == "cpu" and not interpreter.is_on():
        raise KernelsRefused(
            f"{where}: they run on a GPU; TRITON_INTERPRET=1 lets them run on the CPU, slowly, for tests. "
            "Use --kernels cpu, or --device cuda"
        )
    if device != "cpu" and not torch.cuda.is_available():
        reason = "this PyTorch was built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        raise KernelsRefused(f"{where}: {reason} (torch {torch.__version__}); use --device cpu")
    if precision is not None:
        raise KernelsRefused(f"{where} with weights in {precision}: only the CPU's compiled kernels do that")
    from quire.kernels.triton.backend import TritonKernels

    return TritonKernels(torch.device(device), batch_invariant=batch_invariant)


def _on_cpu(name: str, device: str, precision: str | None) -> Kernels:
    import torch

    from quire.kernels.cpu.library import LibraryMissing, load

    reason = f"{name!r} was asked for"
    if name in ("auto", "cpu"):
        from quire.kernels.cpu.compiled import CompiledKernels

        try:
            return CompiledKernels(load(), precision)
        except LibraryMissing as missing:
            reason = str(missing)
    if precision is not None:
        raise KernelsRefused(f"kernels {name!r} with weights in {precision}: only the compiled ones do that; {reason}")
    if name == "reference":
        from quire.kernels.reference import ReferenceKernels

        return ReferenceKernels(torch.device(device))
    from quire.kernels.cpu.torch_backend import CpuKernels

    return CpuKernels()
