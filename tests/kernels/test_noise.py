"""The sampling noise is a pure function with the right distribution."""

import math

import torch

from quire.kernels.noise import gumbel, gumbel_noise, noise_key

VOCABULARY = torch.arange(50_000)


def splitmix(value: int) -> int:
    """SplitMix64's finalizer, written a second time."""
    mask = 2**64 - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_integer_part_is_the_published_hash() -> None:
    key = noise_key(7, 0, 3)
    for token_id in (0, 1, 49_999):
        bits = splitmix((key + (token_id + 1) * 0x9E3779B97F4A7C15) % 2**64)
        expected = -math.log(-math.log1p(-((bits >> 11) + 0.5) / 2**53))
        noise = gumbel_noise(7, 0, 3, torch.tensor([token_id])).item()
        assert math.isclose(noise, expected, rel_tol=1e-5, abs_tol=1e-6)


def test_every_argument_counts() -> None:
    base = gumbel_noise(1, 2, 3, VOCABULARY)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2), (-1, 2, 3), (1 + 2**63, 2, 3)):
        noise = gumbel_noise(*other, VOCABULARY)
        assert (noise == base).float().mean() < 0.001, other
        assert abs(torch.corrcoef(torch.stack((noise, base)))[0, 1]) < 0.02, other


def test_a_token_has_the_same_noise_whatever_is_asked_beside_it() -> None:
    whole = gumbel_noise(5, 0, 17, VOCABULARY)
    some = torch.tensor([40_001, 3, 77, 49_999, 0])
    assert torch.equal(gumbel_noise(5, 0, 17, some), whole[some])
    keys = torch.tensor([[noise_key(5, 0, 17)], [noise_key(6, 0, 17)]])
    assert torch.equal(gumbel(keys, VOCABULARY)[0], whole)


def test_distribution_is_gumbel() -> None:
    noise = torch.cat([gumbel_noise(9, 0, position, VOCABULARY) for position in range(20)]).double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean().item() - 0.5772) < 0.005
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.01
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        threshold = -math.log(-math.log(quantile))
        assert abs((noise <= threshold).double().mean().item() - quantile) < 0.002


def test_argmax_samples_the_softmax() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    keys = torch.tensor([[noise_key(seed, 0, 0)] for seed in range(20_000)])
    chosen = (probabilities.log() + gumbel(keys, torch.arange(3))).argmax(dim=-1)
    shares = torch.bincount(chosen, minlength=3) / len(keys)
    assert torch.allclose(shares, probabilities, atol=0.012)
