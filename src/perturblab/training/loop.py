"""Training: one visible loop.

It sees a model, training images and a recipe, never a test label. `train` yields after every epoch; its caller then
evaluates, records and saves.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.errors import NonFiniteError, UserError
from perturblab.records.choices import OptimMethod, check_choice
from perturblab.seeding import stream
from perturblab.training.ranks import ALONE, Ranks
from perturblab.training.schedules import lr_factor

StateDict = dict[str, Any]  # as torch names it: tensors, numbers and dictionaries of them


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Args:
        nepochs: epochs of the whole run.
        batch_size: images a step.
        optimizer: "SGD", "Adam", "RMSprop" or "AdamW".
        learning_rate: base learning rate.
        momentum: of SGD (Nesterov) and RMSprop.
        weight_decay: on every trainable tensor, batch norm, biases and trained masks included, as published.
        betas: of Adam and AdamW.
        schedule: see `perturblab.training.schedules`.
        dataset: recognised name of the training set, which the published schedules depend on.
        drop_last: skip an epoch's last batch when it is short, as the authors' first code does.
        seed: decides order, augmentation and dropout, each from its own stream.
        precision: "fp32", or "bf16" for automatic mixed precision; weights and sums stay float32.
    """

    nepochs: int
    batch_size: int = 64
    optimizer: str = "SGD"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "kl"
    dataset: str = "CIFAR10"
    drop_last: bool = False
    seed: int = 1
    precision: str = "fp32"


@dataclass
class Epoch:
    """Sums over the images trained on in an epoch so far."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, images: int) -> None:
        """Count one step: its mean loss, correct answers and images."""
        self.loss += loss * images
        self.correct += correct
        self.images += images


@dataclass(frozen=True)
class Outcome:
    """Result of a step on all ranks, on its device: reading it would wait for the device."""

    step: int
    lr: float
    loss: Tensor
    correct: Tensor
    images: int


@dataclass
class State:
    """State of a run between two steps: with model and optimiser, all that is needed to go on bit for bit."""

    optimizer: torch.optim.Optimizer
    order: torch.Generator
    augmentation: torch.Generator
    forward: Tensor  # global random state for dropout and rrelu, which take no generator
    epoch: int = 0
    step: int = 0
    permutation: Tensor | None = None
    reached: Epoch = field(default_factory=Epoch)
    unread: list[Outcome] = field(default_factory=list)
    ranks: Ranks = ALONE

    def read(self) -> None:
        """Count the steps that are not counted yet.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        unread, self.unread = self.unread, []
        if not unread:
            return
        values = torch.stack([torch.stack([o.loss.double(), o.correct.double()]) for o in unread]).tolist()
        for outcome, (loss, correct) in zip(unread, values, strict=True):
            _check_finite(loss, self.epoch, outcome)
            self.reached.add(loss, int(correct), outcome.images)

    def state_dict(self) -> StateDict:
        """Tensors, numbers and dictionaries only, so that it loads with ``weights_only=True``."""
        self.read()
        return {
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "augmentation": self.augmentation.get_state(),
            "forward": self.forward,
            "epoch": self.epoch,
            "step": self.step,
            "permutation": self.permutation,
            "reached": vars(self.reached).copy(),
            **({} if self.ranks.alone else {"ranks": self.ranks.world}),
        }

    def load_state_dict(self, saved: StateDict) -> None:
        """Go on where ``state_dict()`` was taken."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.order.set_state(saved["order"])
        self.augmentation.set_state(saved["augmentation"])
        self.forward, self.permutation = saved["forward"], saved["permutation"]
        self.epoch, self.step, self.reached = saved["epoch"], saved["step"], Epoch(**saved["reached"])


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make a published optimiser for every parameter that is trained.

    Raises:
        ValueError: no optimiser has that name.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, decay = recipe.learning_rate, recipe.weight_decay
    check_choice("optim_method", recipe.optimizer, OptimMethod)
    match recipe.optimizer:
        case "SGD":
            nesterov = recipe.momentum > 0
            return torch.optim.SGD(parameters, lr, recipe.momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case "RMSprop":
            return torch.optim.RMSprop(parameters, lr, momentum=recipe.momentum, weight_decay=decay)
        case "Adam":
            return torch.optim.Adam(parameters, lr, recipe.betas, weight_decay=decay, fused=True)
        case _:
            return torch.optim.AdamW(parameters, lr, recipe.betas, weight_decay=decay, fused=True)


def start(model: nn.Module, recipe: Recipe, ranks: Ranks = ALONE) -> State:
    """Make the state before the first step.

    Args:
        model: its parameters are those that are trained.
        recipe: how.
        ranks: this process among those of the run.
    """
    return State(
        make_optimizer(model, recipe),
        stream(recipe.seed, "order"),
        stream(recipe.seed, "augmentation"),
        stream(recipe.seed, "forward").get_state(),
        ranks=ranks,
    )


def steps_per_epoch(images: int, recipe: Recipe) -> int:
    """Count the optimiser steps of an epoch.

    Raises:
        UserError: there is none, because the only batch is incomplete and dropped.
    """
    steps = images // recipe.batch_size if recipe.drop_last else -(-images // recipe.batch_size)
    if not steps:
        raise UserError(
            f"--batch-size {recipe.batch_size} exceeds the {images} training images, and --code or drops incomplete "
            f"batches; use at most {images}"
        )
    return steps


@dataclass(frozen=True)
class Hooks:
    """The caller's part of a step.

    Args:
        prepare: from a batch of images and the augmentation's stream to what the model takes.
        during: from prepared images, labels and the augmentation's stream to what surrounds the forward pass and gives
            its input: where a defence replaces images, or gives its layers the labels. The stream stands alike on all
            ranks, and must do so afterwards (`Ranks.own`).
        after_step: called after every step; False stops between two steps, and must do so on all ranks.
    """

    prepare: Callable[[Tensor, torch.Generator], Tensor]
    during: Callable[[Tensor, Tensor, torch.Generator], AbstractContextManager[Tensor]] = lambda x, *_: nullcontext(x)
    after_step: Callable[[State], bool] = lambda state: True


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    state: State,
    hooks: Hooks,
) -> Iterator[Epoch]:
    """Train epoch by epoch; on several ranks, each with its rows of every batch.

    Args:
        model: from prepared images to logits (N, classes); trained in place.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        recipe: how to train.
        state: from `start`, or loaded; moved along in place and consistent after every step.
        hooks: the caller's part of a step.

    Yields:
        What each finished epoch reached; ``state`` then stands at the start of the next.

    Raises:
        NonFiniteError: a loss is not finite; raised before the step on a CPU, up to 32 steps later elsewhere.
        RankLostError: another rank has ended.
    """
    ranks, steps = state.ranks, steps_per_epoch(len(labels), recipe)
    while state.epoch < recipe.nepochs:
        model.train()
        if state.permutation is None:
            state.permutation = torch.randperm(len(labels), generator=state.order)
        while state.step < steps:
            began = time.perf_counter()
            rows = state.permutation[state.step * recipe.batch_size : (state.step + 1) * recipe.batch_size]
            x = ranks.share(hooks.prepare(images[rows], state.augmentation))
            y = ranks.share(labels[rows]).to(x.device)
            weight = len(y) / len(rows)
            lr = _set_learning_rate(state, recipe, steps)
            with hooks.during(x, y, state.augmentation) as x:
                logits = _forward(model, x, state, recipe.precision)
            loss = cross_entropy(logits, y) * weight  # over all ranks, the mean loss of the batch
            right = (logits.argmax(1) == y).sum()
            state.unread.append(Outcome(state.step, lr, ranks.sum(loss.detach().clone()), ranks.sum(right), len(rows)))
            if len(state.unread) >= (1 if x.device.type == "cpu" else 32):
                state.read()
            state.optimizer.zero_grad()
            loss.backward()
            ranks.merge(model, weight)
            state.optimizer.step()
            state.reached.seconds += time.perf_counter() - began
            state.step += 1
            if not hooks.after_step(state):
                return
        state.read()
        reached = state.reached
        state.epoch, state.step, state.permutation, state.reached = state.epoch + 1, 0, None, Epoch()
        yield reached


def _set_learning_rate(state: State, recipe: Recipe, steps: int) -> float:
    factor = lr_factor(recipe.schedule, recipe.dataset, state.epoch, recipe.nepochs, state.step, steps)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * factor
    return recipe.learning_rate * factor


def _forward(model: nn.Module, x: Tensor, state: State, precision: str) -> Tensor:
    """Run the model on the run's own random state, since dropout and rrelu take no generator."""
    mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.random.fork_rng(devices=[]), mixed:
        torch.set_rng_state(state.forward)
        after = _reseed(state.ranks)
        logits: Tensor = model(x)
        state.forward = torch.get_rng_state() if after is None else after
    return logits.float()


def _reseed(ranks: Ranks) -> Tensor | None:
    """Seed each rank's own dropout; return the state where all ranks stand afterwards, None with one process."""
    if ranks.alone:
        return None
    own, after = ranks.own(torch.default_generator), torch.get_rng_state()
    torch.manual_seed(own.initial_seed())
    return after


def _check_finite(loss: float, epoch: int, outcome: Outcome) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {loss} in epoch {epoch + 1}, step {outcome.step + 1}, at learning rate {outcome.lr:g}; "
            f"try --learning-rate {outcome.lr / 10:g}, or look at the data"
        )
