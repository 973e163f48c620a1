"""Muon for the matrices, AdamW for the embedding and the norms.

Muon (Keller Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a weight matrix is
replaced by the nearest orthogonal matrix, found by a Newton-Schulz iteration. Matrices of one shape are stacked, so
that a step is a handful of batched products.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(stack: Tensor, iterations: int = 5) -> Tensor:
    """Roughly the orthogonal factor of each matrix of stack [count, rows, columns]: singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    wide = stack.shape[1] <= stack.shape[2]
    x = stack if wide else stack.transpose(1, 2)
    norm: Tensor = x.flatten(1).norm(dim=1)
    x = x / (norm[:, None, None] + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class Muon:
    """Momentum, orthogonalised, for the matrices of one model."""

    def __init__(self, matrices: dict[str, nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.velocity = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, matrix in matrices.items():
            by_shape[tuple(matrix.shape)].append(name)
        self.groups = [[(name, matrices[name]) for name in names] for names in by_shape.values()]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at learning rate `rate` from the gradients the parameters hold."""
        for group in self.groups:
            looks = []
            for name, matrix in group:
                assert matrix.grad is not None
                velocity = self.velocity[name].lerp_(matrix.grad, 1 - self.momentum)
                looks.append(torch.lerp(matrix.grad, velocity, self.momentum))
            updates = orthogonalize(torch.stack(looks))
            for (_, matrix), update in zip(group, updates, strict=True):
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate * scale)
