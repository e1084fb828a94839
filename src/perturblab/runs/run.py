"""A run in memory, between its configuration and its folder."""

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
from perturblab.layers.mixing import batch_step
from perturblab.records.config import TrainConfig
from perturblab.records.metrics import Row
from perturblab.records.record import Part
from perturblab.runs.build import Built
from perturblab.training import evaluate, loop
from perturblab.training.adversarial import Adversary, adversarial_images
from perturblab.training.ranks import ALONE, Ranks


@dataclass
class History:
    """The measurements of a run so far, which its checkpoints keep.

    Attributes:
        rows: metrics, one row per epoch.
        correct: audited answers on the test set, one bool (N,) per epoch; empty without the audit.
        parts: the segments of the run; more than one where it was resumed under other circumstances.
    """

    rows: list[Row] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


@dataclass
class Written:
    """The files of a run's folder as they were last written.

    Attributes:
        epochs: number of epochs in the metrics and the picture; -1 where they are not written yet.
        masks: digests of the masks file by buffer; empty where it is not written yet.
        stamp: identity of the checkpoint that the run goes on from; None in a new run.
    """

    epochs: int = -1
    masks: dict[str, str] = field(default_factory=dict)
    stamp: tuple[int, ...] | None = None


@dataclass
class Run:
    """A run in memory.

    Attributes:
        config: what was given, with the decision whether to compile.
        folder: where its files lie.
        images: all that was loaded.
        training: the images to train on.
        validation: the images held out of them, if any.
        built: what the configuration means for these images.
        state: of the training loop.
        device: where it computes.
        ranks: this process among those of the run.
        history: what was measured so far.
        written: what of it is in the folder.
    """

    config: TrainConfig
    folder: Path
    images: data.ImageData
    training: data.Split
    validation: data.Split | None
    built: Built
    state: loop.State
    device: torch.device
    ranks: Ranks = ALONE
    history: History = field(default_factory=History)
    written: Written = field(default_factory=Written)

    @property
    def model(self) -> nn.Module:
        """The net."""
        return self.built.model

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
        return loop.steps_per_epoch(len(self.training), self.built.recipe)

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (N, C, H, W) for the model, on its device."""
        x = data.normalise(images.to(self.device), self.built.preparation)
        return x.contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise uint8 images (N, C, H, W) for a training step."""
        return self.normalised(data.augment(images, self.built.preparation, generator))

    @property
    def in_pixels(self) -> PixelModel:
        """The model from pixels (N, C, H, W) in [0, 1] to logits, as attacks meet it: it normalises them itself."""
        return PixelModel(self.model, self.built.preparation.mean, self.built.preparation.std)

    @contextmanager
    def during(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Surround a training forward pass: attack its images (N, C, H, W), and tell BatchOut the labels (N,)."""
        if self.built.adversary is not None:
            x = self._attacked(x, y, self.built.adversary, generator)
        y, across = self.ranks.batch(y) if self.built.mixings else (y, None)
        with batch_step(y, across=across):
            yield x

    def _attacked(self, x: Tensor, y: Tensor, adversary: Adversary, generator: torch.Generator) -> Tensor:
        """Replace the first rows of a batch by adversarial images; the others keep their bits."""
        model, generator = self.in_pixels, self.ranks.own(generator)
        count = self.ranks.count(int(adversary.share * self.ranks.total(len(x))))
        if not count:
            return x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.built.recipe.precision == "bf16"):
            pixels = (x[:count] * model.std + model.mean).clamp(0, 1)
            attacked = adversarial_images(model, pixels, y[:count], adversary, generator=generator)
        return torch.cat([((attacked - model.mean) / model.std).to(x), x[count:]])

    def answers(self, split: data.Split) -> evaluate.Answers:
        """Answer every image of a split exactly once, in eval mode."""
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
