"""Tensors in, tensors out: the operations a model is made of, in several backends behind one interface."""

from __future__ import annotations

import torch

from quire.kernels.cpu.torch_backend import CpuKernels
from quire.kernels.interface import Activation, AttentionPlan, Kernels
from quire.kernels.reference import ReferenceKernels

__all__ = ["Activation", "AttentionPlan", "Kernels", "KernelsRefused", "select"]


class KernelsRefused(ValueError):
    """A backend that cannot serve on this device; the text says why and what to choose instead."""


def select(name: str, device: str) -> Kernels:
    """Choose a backend for a device, once, at start: name auto | reference | cpu | triton, device cpu | cuda.

    `auto` is the fastest that is built for the device. Raises KernelsRefused with the reason.
    """
    if name == "reference":
        return ReferenceKernels(torch.device(device))
    if name == "triton" or (name == "auto" and device != "cpu"):
        raise KernelsRefused(
            f"kernels {name!r} on device {device!r}: the triton backend is not built yet; "
            "use --device cpu, or --kernels reference"
        )
    if name == "cpu" and device != "cpu":
        raise KernelsRefused(f"kernels 'cpu' on device {device!r}: they run on the CPU alone; use --device cpu")
    if name not in ("auto", "cpu"):
        raise KernelsRefused(f"kernels {name!r}: unknown; choose auto, reference, cpu or triton")
    return CpuKernels()
