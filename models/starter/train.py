"""Train the starter model from random: `python -m quire.models.starter.train --minutes 95`.

The learning rate follows the wall clock, so that the run ends when it must on a busy machine as on an idle one. A
checkpoint is written every few minutes; started again, the run goes on from it.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quire.models.starter.batches import Batch, batches
from quire.models.starter.data.dialogue import training_world
from quire.models.starter.model import Shape, StarterModel
from quire.models.starter.optim import Muon
from quire.models.starter.rendering import FOLDER

logger = logging.getLogger("train")
WARMUP_STEPS = 50
CONSTANT_UNTIL = 0.3
LOG_EVERY = 25


@dataclass
class Progress:
    """How far the run has come; what a checkpoint carries beside tensors."""

    step: int = 0
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0


class Trainer:
    """The model, its two optimizers and its progress."""

    def __init__(self, shape: Shape, seed: int, matrix_rate: float, vector_rate: float) -> None:
        self.model = StarterModel(shape)
        self.model.initialize(seed)
        parameters = dict(self.model.named_parameters())
        matrices = {name: weight for name, weight in parameters.items() if weight.dim() == 2 and "embed" not in name}
        self.rest: dict[str, nn.Parameter] = {
            name: weight for name, weight in parameters.items() if name not in matrices
        }
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(self.rest.values(), betas=(0.9, 0.95), weight_decay=0.0)
        self.matrix_rate, self.vector_rate = matrix_rate, vector_rate
        self.progress = Progress()
        for layer in self.model.model.layers:
            layer.compile(dynamic=True)

    def step(self, batch: Batch, factor: float) -> Tensor:
        """One update; returns the mean loss over the assistant's tokens."""
        inputs, targets, wanted = batch.tokens[:, :-1].contiguous(), batch.tokens[:, 1:], batch.supervised[:, 1:]
        hidden = self.model.hidden(inputs)
        loss = F.cross_entropy(self.model.logits(hidden[wanted]), targets[wanted])
        for parameter in self.model.parameters():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor *= min(1.0, (self.progress.step + 1) / WARMUP_STEPS)
        self.muon.step(self.matrix_rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.vector_rate * factor
        self.adam.step()
        self.progress.step += 1
        self.progress.tokens += inputs.numel()
        self.progress.supervised += int(wanted.sum())
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write everything needed to go on, in safetensors and JSON; replaced in one move."""
        folder.mkdir(exist_ok=True)
        tensors = {name: weight.detach() for name, weight in self.model.named_parameters()}
        tensors |= {f"muon.{name}": velocity for name, velocity in self.muon.velocity.items()}
        for name, weight in self.rest.items():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.adam.state[weight].items()}
        save_file(tensors, folder / "state.partial")
        (folder / "state.partial").replace(folder / "state.safetensors")
        (folder / "shape.json").write_text(json.dumps(asdict(self.model.shape)))
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def restore(self, folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(tensors[name])
        for name, velocity in self.muon.velocity.items():
            velocity.copy_(tensors[f"muon.{name}"])
        for name, weight in self.rest.items():
            prefix = f"adam.{name}."
            self.adam.state[weight] = {
                key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)
            }
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))


def rate_factor(fraction: float) -> float:
    """Share of the peak learning rate at a fraction of the time budget: constant, then a cosine to zero."""
    decay = max(0.0, fraction - CONSTANT_UNTIL) / (1 - CONSTANT_UNTIL)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, decay)))


def train(arguments: argparse.Namespace) -> None:
    trainer = Trainer(Shape(), arguments.seed, arguments.matrix_rate, arguments.vector_rate)
    if (arguments.checkpoint / "state.safetensors").exists():
        trainer.restore(arguments.checkpoint)
    progress = trainer.progress
    size = sum(weight.numel() for weight in trainer.model.parameters())
    logger.info(
        "%d parameters, seed %d, %.0f minutes, from step %d", size, arguments.seed, arguments.minutes, progress.step
    )
    source = batches(training_world(arguments.seed * 1_000_003 + progress.step), FOLDER, arguments.batch_tokens)
    before, started = progress.seconds, time.monotonic()
    losses: list[Tensor] = []
    last_save, mark = started, (started, progress.tokens)
    while progress.seconds < arguments.minutes * 60:
        factor = rate_factor(progress.seconds / (arguments.minutes * 60))
        losses.append(trainer.step(next(source), factor))
        now = time.monotonic()
        progress.seconds = before + now - started
        if progress.step % LOG_EVERY == 0:
            logger.info(
                "step %5d  loss %.4f  %6.1fk tokens  %5.0f s  %5.0f tokens/s  rate %.3f",
                progress.step,
                torch.stack(losses).mean(),
                progress.tokens / 1000,
                progress.seconds,
                (progress.tokens - mark[1]) / (now - mark[0]),
                factor,
            )
            losses, mark = [], (now, progress.tokens)
        if now - last_save > arguments.save_every:
            trainer.save(arguments.checkpoint)
            last_save = now
    trainer.save(arguments.checkpoint)
    logger.info(
        "done: %d steps, %d tokens, of them %d supervised, %.0f s",
        progress.step,
        progress.tokens,
        progress.supervised,
        progress.seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=5120)
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--vector-rate", type=float, default=0.003)
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / "checkpoint")
    parser.add_argument("--log", type=Path, default=FOLDER / "training.log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", filename=arguments.log)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    train(arguments)


if __name__ == "__main__":
    main()
