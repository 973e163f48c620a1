"""The compiled pointwise operations: as exact as PyTorch's, on every instruction set, and each row by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.cpu import library
from quire.kernels.cpu.pointwise import Pointwise
from quire.kernels.interface import Activation
from quire.kernels.reference import ReferenceKernels

try:
    USABLE = library.usable()
except library.LibraryMissing:
    USABLE = ()
pytestmark = pytest.mark.skipif(not USABLE, reason="the compiled library was not built")
SIZES = (1, 3, 15, 16, 17, 63, 64, 65, 255, 1000)
KINDS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu")
REFERENCE = ReferenceKernels(torch.device("cpu"))


@pytest.fixture(scope="module", params=USABLE)
def pointwise(request: pytest.FixtureRequest) -> Pointwise:
    return Pointwise(library.load(request.param))


def wide(size: int, *shape: int) -> Tensor:
    """Rows `size` long that lie in wider rows, of values over several orders of magnitude."""
    random = torch.Generator().manual_seed(size)
    x = torch.randn(*shape, size + 7, generator=random) * torch.exp(2 * torch.randn(*shape, 1, generator=random))
    return x[..., 3 : size + 3]


def assert_as_exact_as_torch(found: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """At most twice PyTorch's own error, or four units in the last place of the largest value where PyTorch has less.

    Which way its own roundings fall is the machine's affair (2.8 is the most seen in 1,500 draws of each activation).
    """
    assert (found.shape, found.dtype) == (torchs.shape, torch.float32)
    assert found.is_contiguous()
    unit = exact.abs().max().item() * torch.finfo(torch.float32).eps
    allowed = max(2 * (torchs.double() - exact).abs().max().item(), 4 * unit)
    assert (found.double() - exact).abs().max().item() <= allowed


# --- norms -----------------------------------------------------------------------------------------------------------


def exact_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("size", [*SIZES, 8192])
def test_rms_norm(size: int, pointwise: Pointwise) -> None:
    x, weight = wide(size, 5), torch.randn(size)
    expected = REFERENCE.rms_norm(x, weight, 1e-6)
    assert_as_exact_as_torch(pointwise.rms_norm(x, weight, 1e-6), expected, exact_rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("size", [16, 63, 128])
def test_rms_norm_of_heads_in_a_wider_row(size: int, pointwise: Pointwise) -> None:
    qkv, weight = torch.randn(4, 5 * size).view(4, 5, size), torch.randn(3, size)
    x = qkv[:, :3]
    expected = REFERENCE.rms_norm(x, weight, 1e-5)
    found = pointwise.rms_norm(x, weight, 1e-5)
    assert_as_exact_as_torch(found, expected, exact_rms_norm(x, weight, 1e-5))
    assert torch.equal(found, pointwise.rms_norm(x.contiguous(), weight, 1e-5))
    shared = pointwise.rms_norm(x, weight[0], 1e-5)
    assert torch.equal(shared[:, 0], found[:, 0])
    every_second = qkv[:, ::2]
    expected = pointwise.rms_norm(every_second.contiguous(), weight, 1e-5)
    assert torch.equal(pointwise.rms_norm(every_second, weight, 1e-5), expected)


@pytest.mark.parametrize("size", SIZES)
def test_add_rms_norm_is_both_to_the_bit(size: int, pointwise: Pointwise) -> None:
    x, residual, weight = wide(size, 6), torch.randn(6, size), torch.randn(size)
    normed, total = pointwise.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, pointwise.rms_norm(total, weight, 1e-6))


@pytest.mark.parametrize("size", [*SIZES, 8192])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(size: int, with_bias: bool, pointwise: Pointwise) -> None:
    x, weight = wide(size, 5) + 3.0, torch.randn(size)
    bias = torch.randn(size) if with_bias else None
    exact = F.layer_norm(x.double(), (size,), weight.double(), bias.double() if bias is not None else None, 1e-5)
    expected = REFERENCE.layer_norm(x, weight, bias, 1e-5)
    assert_as_exact_as_torch(pointwise.layer_norm(x, weight, bias, 1e-5), expected, exact)


# --- rotary embedding ------------------------------------------------------------------------------------------------


def turns(half: int) -> tuple[Tensor, Tensor]:
    """Positions of seven tokens, and a table."""
    angles = torch.outer(torch.arange(100.0), torch.rand(half, generator=torch.Generator().manual_seed(half)))
    return torch.tensor([0, 1, 5, 5, 99, 2, 50]), torch.stack((angles.cos(), angles.sin()), dim=1)


@pytest.mark.parametrize(("size", "rotary"), [(64, 64), (64, 16), (80, 80), (96, 40), (128, 128), (34, 34), (7, 2)])
def test_rope(size: int, rotary: int, pointwise: Pointwise) -> None:
    qkv = torch.randn(7, 5, size)
    x, (positions, table) = qkv[:, :3], turns(rotary // 2)
    before = qkv.clone()
    expected = REFERENCE.rope(x, positions, table)
    found = pointwise.rope(x, positions, table)
    assert_as_exact_as_torch(found, expected, REFERENCE.rope(x.double(), positions, table.double()).double())
    assert torch.equal(qkv, before), "the input is not changed"
    assert torch.equal(found[..., rotary:], x[..., rotary:])
    weight = torch.randn(3, size)
    fused = pointwise.norm_rope(x, weight, 1e-6, positions, table)
    assert torch.equal(fused, pointwise.rope(pointwise.rms_norm(x, weight, 1e-6), positions, table))
    narrow = pointwise.norm_rope(x, weight[0], 1e-6, positions.int(), table)
    assert torch.equal(narrow[:, 0], fused[:, 0])


# --- activations -----------------------------------------------------------------------------------------------------


def exact_activation(x: Tensor, kind: Activation) -> Tensor:
    x = x.double()
    formulas: dict[Activation, Callable[[], Tensor]] = {
        "silu": lambda: x / (1 + torch.exp(-x)),
        "gelu": lambda: x * 0.5 * torch.erfc(-x / 2**0.5),
        "gelu_tanh": lambda: x / (1 + torch.exp(-2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": lambda: x.clamp(min=0),
    }
    return formulas[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_activations_over_their_range(kind: Activation, pointwise: Pointwise) -> None:
    """Stretch by stretch, so that a small error among small values counts."""
    for low, high in ((-30, -12), (-12, -6), (-6, -3), (-3, -1), (-1, 0), (0, 1), (1, 3), (3, 12), (12, 1e4)):
        x = torch.linspace(low, high, 4097)
        torchs = REFERENCE.activation(x, kind)
        assert_as_exact_as_torch(pointwise.activation(x, kind), torchs, exact_activation(x, kind))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_gated_activation(kind: Activation, size: int, pointwise: Pointwise) -> None:
    gate, up = (torch.randn(5, 2 * size) * 4).chunk(2, dim=-1)
    found = pointwise.gated_activation(gate, up, kind)
    exact = exact_activation(gate, kind) * up.double()
    assert_as_exact_as_torch(found, REFERENCE.gated_activation(gate, up, kind), exact)
    assert torch.equal(found, pointwise.gated_activation(gate.contiguous(), up.T.contiguous().T, kind))
    assert torch.equal(pointwise.activation(gate, kind) * up, found)


@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind: Activation, pointwise: Pointwise) -> None:
    x = torch.tensor([-torch.inf, -1e38, -1e20, -1e4, -200.0, -104.0, -89.0, 0.0, 89.0, 104.0, 1e4, 1e20, torch.inf])
    found = pointwise.activation(x, kind)
    assert found[1:7].abs().max() < 1e-30
    assert torch.equal(found[7:], x[7:])
    assert torch.equal(found[:1].isnan(), REFERENCE.activation(x[:1], kind).isnan())
    tiny = torch.tensor([1e-45, -1e-45, 1e-39, 1e-30, -1e-30])
    torch.testing.assert_close(
        pointwise.activation(tiny, kind), REFERENCE.activation(tiny, kind), rtol=1e-6, atol=2e-45
    )


# --- every row by itself ---------------------------------------------------------------------------------------------


def operations(pointwise: Pointwise, size: int, rows: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Operations on x [rows, 4 * size]."""
    weight, bias, head_weight = torch.randn(4 * size), torch.randn(4 * size), torch.randn(4, size)
    residual = torch.randn(1, 4 * size)
    _, table = turns(size // 2)
    positions = torch.full((rows,), 7)

    def heads(x: Tensor) -> Tensor:
        return x.view(-1, 4, size)

    made: dict[str, Callable[[Tensor], Tensor]] = {
        "rms_norm": lambda x: pointwise.rms_norm(x, weight, 1e-6),
        "head_norm": lambda x: pointwise.rms_norm(heads(x), head_weight, 1e-6).flatten(1),
        "add_rms_norm": lambda x: pointwise.add_rms_norm(x, residual.expand_as(x), weight, 1e-6)[0],
        "layer_norm": lambda x: pointwise.layer_norm(x, weight, bias, 1e-6),
        "rope": lambda x: pointwise.rope(heads(x), positions[: len(x)], table).flatten(1),
        "norm_rope": lambda x: pointwise.norm_rope(heads(x), head_weight, 1e-6, positions[: len(x)], table).flatten(1),
    }
    for kind in KINDS:
        made[kind] = lambda x, kind=kind: pointwise.activation(x, kind)  # type: ignore[misc]
        made[f"gated {kind}"] = lambda x, kind=kind: pointwise.gated_activation(x, x, kind)  # type: ignore[misc]
    return made


@pytest.mark.parametrize("size", [18, 96])
def test_a_row_depends_on_itself_alone(size: int, pointwise: Pointwise, request: pytest.FixtureRequest) -> None:
    """Not on the rows beside it (NaN among them), nor on their number, nor on the threads."""
    rows = 200
    x = torch.randn(rows, 4 * size)
    poisoned = x.clone()
    poisoned[::3] = torch.nan
    kept = torch.arange(rows) % 3 != 0
    chosen = library.load()
    for name, operation in operations(pointwise, size, rows).items():
        whole = operation(x)
        assert torch.isfinite(whole).all(), name
        for begin, end in ((0, 1), (199, 200), (3, 20), (40, 107)):
            assert torch.equal(operation(x[begin:end]), whole[begin:end]), name
        beside_nan = operation(poisoned)
        assert torch.equal(beside_nan[kept], whole[kept]), name
        assert beside_nan[~kept].isnan().all(), name
        threads = torch.get_num_threads()
        try:
            chosen.set_threads(3)
            assert torch.equal(operation(x), whole), name
        finally:
            chosen.set_threads(threads)
        assert operation(x[:0]).shape == (0, 4 * size), name


def test_other_types_are_refused(pointwise: Pointwise) -> None:
    x, weight = torch.randn(2, 8), torch.randn(8)
    for call in (
        lambda: pointwise.rms_norm(x.half(), weight, 1e-6),
        lambda: pointwise.rms_norm(x, weight.bfloat16(), 1e-6),
        lambda: pointwise.activation(x.double(), "silu"),
        lambda: pointwise.rope(x.view(1, 2, 8).half(), torch.tensor([0]), torch.zeros(1, 2, 4)),
    ):
        with pytest.raises(TypeError, match="compute in float32; this tensor is"):
            call()
