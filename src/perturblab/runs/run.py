"""A run in memory: everything between its configuration and its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from perturblab import data
from perturblab.attacks.pixels import PixelModel
from perturblab.layers.masks import fixed_buffers
from perturblab.layers.mixing import Mixing, batch_step
from perturblab.records.config import TrainConfig
from perturblab.records.metrics import Row
from perturblab.records.record import Part
from perturblab.training import evaluate, loop
from perturblab.training.adversarial import Adversary, adversarial_images
from perturblab.training.ranks import ALONE, Ranks


@dataclass
class Run:
    """A run in memory: everything between its configuration and its folder."""

    config: TrainConfig
    folder: Path
    images: data.ImageData
    training: data.Split
    validation: data.Split | None
    preparation: data.Preparation
    model: nn.Module
    mixings: dict[str, Mixing]  # where BatchOut stands
    adversary: Adversary | None
    recipe: loop.Recipe
    state: loop.State
    device: torch.device
    rows: list[Row]  # one per epoch
    correct: list[Tensor]  # audited answers, bool (N,), one an epoch
    ranks: Ranks = ALONE
    parts: list[Part] = field(default_factory=list)  # where it was begun, and gone on with otherwise
    shown: int = -1  # epochs in the metrics and the picture that are written
    fixed: dict[str, str] = field(default_factory=dict)  # digests of the masks that are written
    stamp: tuple[int, ...] | None = None  # of the checkpoint that it goes on from

    @property
    def trained(self) -> nn.Module:
        """The model as it is trained: itself, or compiled."""
        if self.config.compile != "on":
            return self.model
        # An epoch has at most two batch sizes; as symbols they are beyond what inductor can decide about these nets.
        # Layers share their code. Beyond a limit PyTorch leaves the next ones uncompiled, and which these are would
        # depend on the batch that came first: a resumed run would go on with other bits.
        settings, most = torch._dynamo.config, 8 + 2 * len(list(self.model.modules()))
        settings.cache_size_limit, settings.accumulated_cache_size_limit = most, 32 * most
        return cast(nn.Module, torch.compile(self.model, dynamic=False))

    @property
    def unchanging(self) -> dict[str, Tensor]:
        """Masks and anchors that are written once, by their names in the state dict."""
        return fixed_buffers(self.model)

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return loop.steps_per_epoch(len(self.training), self.recipe)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to what the model takes, on its device."""
        x = data.normalise(images.to(self.device), self.preparation)
        return x.contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The same, (N, C, H, W), with this run's augmentation."""
        return self.normalised(data.augment(images, self.preparation, generator))

    @property
    def in_pixels(self) -> PixelModel:
        """The model as it is attacked: it takes pixels in [0, 1], and normalises them."""
        return PixelModel(self.model, self.preparation.mean, self.preparation.std)

    @contextmanager
    def during(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """What surrounds a training forward pass: the labels for BatchOut, adversarial images instead of clean ones."""
        if self.adversary is not None:
            x = self._attacked(x, y, self.adversary, generator)
        y, across = self.ranks.batch(y) if self.mixings else (y, None)
        with batch_step(y, across=across):
            yield x

    def _attacked(self, x: Tensor, y: Tensor, adversary: Adversary, generator: torch.Generator) -> Tensor:
        """The first rows of a batch replaced by adversarial images; the others keep their bits."""
        model, generator = self.in_pixels, self.ranks.own(generator)
        count = self.ranks.count(int(adversary.share * self.ranks.total(len(x))))
        if not count:
            return x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            pixels = (x[:count] * model.std + model.mean).clamp(0, 1)
            attacked = adversarial_images(model, pixels, y[:count], adversary, generator=generator)
        return torch.cat([((attacked - model.mean) / model.std).to(x), x[count:]])

    def answers(self, split: data.Split) -> evaluate.Answers:
        """The net's exact answers on a split, in eval mode."""
        self.model.eval()
        # Measuring must not move the masks that are redrawn at every forward: their counters go back.
        draws = {name: value.clone() for name, value in self.model.named_buffers() if name.endswith("draws")}
        with self.ranks.agreed():
            found = evaluate.answers(
                self.model, split.images, split.labels, prepare=self.normalised, part=self.ranks.rows
            )
        self.model.load_state_dict(draws, strict=False)
        loss = self.ranks.sum(torch.tensor(found.loss, dtype=torch.float64))
        return evaluate.Answers(self.ranks.sum(found.correct.int()).bool(), float(loss))
