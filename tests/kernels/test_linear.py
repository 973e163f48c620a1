"""The compiled linear layer: right to rounding, and one row's answer the same whatever lies beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire.kernels.cpu import library
from quire.kernels.cpu.layout import packed_bytes
from quire.kernels.cpu.linear import Linear, PackedLinear

try:
    ISAS = library.usable()
except library.LibraryMissing as problem:
    pytest.skip(str(problem), allow_module_level=True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = {"int8": 0.0065, "int4": 0.083, "int8-w8a8": 0.0065}
"""Root mean square error of gaussian weights, relative."""
PRECISIONS = [*DTYPES, *QUANTIZED]
SHAPES = [(1, 1), (3, 63), (64, 64), (65, 127), (200, 129), (130, 300), (512, 1024)]  # out, in


@pytest.fixture(params=ISAS)
def linear(request: pytest.FixtureRequest) -> Linear:
    """The layer at each instruction set that this CPU has."""
    return Linear(library.load(request.param))


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    library.load().set_threads(before)


def pack(linear: Linear, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> PackedLinear:
    if precision not in linear.precisions:
        assert precision == "int8-w8a8"
        assert "vnni" not in linear.library.isa
        pytest.skip("needs VNNI")
    return linear.pack(weight, bias, precision)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("out", "size"), SHAPES)
def test_equals_float64(linear: Linear, out: int, size: int, precision: str) -> None:
    weight, bias = random(out, size).to(DTYPES[precision]), random(out, seed=1)
    packed = linear.pack(weight, bias)
    assert (packed.out_features, packed.in_features, packed.precision) == (out, size, precision)
    assert torch.equal(packed.bias if packed.bias is not None else bias, bias)
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 70):
        x = random(rows, size, seed=rows)
        wanted = x.double() @ weight.double().T + bias.double()
        scale = x.double().abs() @ weight.double().abs().T + bias.double().abs()
        unit = 2.0**-8 if linear.library.isa == "avx512bf16" and precision == "bfloat16" else 2.0**-24 * (size + 1)
        assert ((linear.apply(x, packed) - wanted).abs() <= unit * scale).all()


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize(("out", "size"), SHAPES)
def test_quantized_equals_float64_of_its_own_weights(linear: Linear, out: int, size: int, precision: str) -> None:
    """Sums of what `rows` gives; int8-w8a8's activations are exact where they are whole numbers up to 127."""
    weight, bias = random(out, size), random(out, seed=1)
    packed = pack(linear, weight, bias, precision)
    kept = linear.rows(torch.arange(out), packed).double()
    for rows in (1, 2, 6, 7, 13, 70):
        x = torch.randint(-127, 128, (rows, size), generator=torch.Generator().manual_seed(rows)).float()
        x[:, ::64] = 127
        wanted = x.double() @ kept.T + bias.double()
        scale = x.double().abs() @ kept.abs().T + bias.double().abs()
        assert ((linear.apply(x, packed) - wanted).abs() <= 2.0**-24 * (size + 4) * scale).all()


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_weights_are_near(linear: Linear, precision: str) -> None:
    weight = random(256, 512)
    weight[3], weight[4, :64] = 0, 0
    kept = linear.rows(torch.arange(256), pack(linear, weight, None, precision))
    assert ((kept - weight).square().mean() / weight.square().mean()).sqrt() < QUANTIZED[precision]
    assert kept[3].count_nonzero() + kept[4, :64].count_nonzero() == 0


def test_quantized_activations_are_near(linear: Linear) -> None:
    """Groups have scales of their own: a large activation costs its 64 neighbours, nobody else."""
    weight, x = random(128, 512), random(9, 512, seed=1)
    x[:, 5] *= 1000
    packed = pack(linear, weight, None, "int8-w8a8")
    x[:, :64] = 0
    wanted = x.double() @ linear.rows(torch.arange(128), packed).double().T
    error = (linear.apply(x, packed) - wanted).square().mean() / wanted.square().mean()
    assert error.sqrt() < 0.01


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("out", "size"), [(65, 127), (192, 600)])
def test_a_row_is_alone(linear: Linear, out: int, size: int, precision: str, threads: None) -> None:
    """Each row of every batch of 1 .. 70, and of one beyond a slab, has the bits it has alone, on 1 and 2 threads."""
    packed = pack(linear, random(out, size), random(out, seed=1), precision)
    x = random(560, size, seed=2)
    linear.library.set_threads(1)
    alone = torch.cat([linear.apply(row[None], packed) for row in x[:70]])
    for count in (1, 2, 3):
        linear.library.set_threads(count)
        for rows in range(1, 71) if count == 2 else (1, 6, 7, 31, 70):
            assert torch.equal(linear.apply(x[:rows], packed), alone[:rows]), (count, rows)
        assert torch.equal(linear.apply(x, packed)[490:], linear.apply(x[490:], packed))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_stays_in_its_row(linear: Linear, precision: str) -> None:
    packed = pack(linear, random(130, 129), None, precision)
    x = random(20, 129)
    x[:, 64:128] = 0
    clean = linear.apply(x, packed)
    dirty = x.clone()
    dirty[::2] = float("nan")
    dirty[1, :] = float("inf")
    mixed = linear.apply(dirty, packed)
    assert torch.equal(mixed[3::2], clean[3::2])
    assert mixed[::2].isnan().all()


@pytest.mark.parametrize("precision", DTYPES)
def test_rows_are_the_weight(linear: Linear, precision: str) -> None:
    weight = random(300, 77).to(DTYPES[precision])
    ids = torch.tensor([0, 299, 63, 64, 5, 5, 128, 200, 1, 2, 3])
    assert torch.equal(linear.rows(ids, linear.pack(weight, None)), weight[ids].float())


def test_packs_into_another_precision(linear: Linear) -> None:
    weight, x = random(70, 65), random(3, 65, seed=1)
    packed = linear.pack(weight, None, "bfloat16")
    assert torch.equal(linear.apply(x, packed), linear.apply(x, linear.pack(weight.bfloat16(), None)))
    assert packed.nbytes == 128 * 66 * 2


def test_refuses_a_precision_it_does_not_have(linear: Linear) -> None:
    with pytest.raises(ValueError, match=f"no linear layer in int3 on {linear.library.isa}; there are: float32, "):
        linear.pack(random(64, 32), None, "int3")


def test_a_view_of_rows_and_no_rows(linear: Linear) -> None:
    packed, x = linear.pack(random(64, 32), None), random(4, 64)
    assert torch.equal(linear.apply(x[:, 32:], packed), linear.apply(x[:, 32:].contiguous(), packed))
    assert linear.apply(x[:0, 32:], packed).shape == (0, 64)


@pytest.mark.parametrize(("kind", "low", "high"), [("q8_0", -127, 128), ("q4_0", -8, 8)])
@pytest.mark.parametrize("shape", [(1, 32), (65, 96), (200, 320)], ids=str)
def test_codes_of_a_file_are_kept(
    kind: str, low: int, high: int, shape: tuple[int, int], linear: Linear, threads: None
) -> None:
    """As if multiplied by code times scale, for any number of rows the same; and every weight is read back exactly."""
    out_features, in_features = shape
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(low, high, shape, generator=random, dtype=torch.int8)
    scales = torch.randn(out_features, in_features // 32, generator=random).mul_(0.01).half().float()
    bias = torch.randn(out_features, generator=random)
    weight = (codes.view(out_features, -1, 32) * scales[..., None]).view(shape)
    packed = linear.pack_codes(kind, codes, scales, bias)
    assert packed.nbytes == packed_bytes(out_features, in_features, kind, bias=True, precise=False)
    assert torch.equal(linear.rows(torch.arange(out_features), packed), weight)
    x = torch.randn(70, in_features, generator=random)
    found = linear.apply(x, packed)
    torch.testing.assert_close(found, x @ weight.T + bias, rtol=1e-4, atol=1e-4)
    for rows in (1, 2, 6, 7, 13, 69):
        assert torch.equal(linear.apply(x[:rows], packed), found[:rows])
    with pytest.raises(ValueError, match="no codes"):
        linear.pack_codes("int8", codes, scales, bias)
