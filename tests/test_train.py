"""`perturblab.training.loop`: bit for bit a bare loop, whatever interrupts it; every random stream on its own."""

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from perturblab import data
from perturblab.errors import NonFiniteError, UserError
from perturblab.layers import Masks
from perturblab.models import Task, build
from perturblab.records.choices import OptimMethod
from perturblab.records.config import TrainConfig
from perturblab.seeding import stream
from perturblab.training.loop import Epoch, Hooks, Recipe, State, make_optimizer, start, steps_per_epoch, train
from perturblab.training.schedules import lr_factor
from told import in_order

COUNT, CLASSES, SIZE = 23, 4, (8, 8)
OPTIMIZERS = get_args(OptimMethod)
BATCH = 5  # 23 = 4 * 5 + 3: the last batch is ragged
RECIPE = Recipe(nepochs=3, batch_size=BATCH, learning_rate=0.02, schedule="cosine", seed=3)
PREPARATION = data.Preparation((0.4,), (0.3,), crop_padding=1, flip=True)
Prepare = Callable[[Tensor, torch.Generator], Tensor]


def samples() -> tuple[Tensor, Tensor]:
    """Images whose first pixel is their number, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 1, *SIZE), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(COUNT)
    return images, torch.randint(CLASSES, (COUNT,), generator=generator)


IMAGES, LABELS = samples()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    return data.normalise(data.augment(images, PREPARATION, generator), PREPARATION)


def plainly(images: Tensor, generator: torch.Generator) -> Tensor:
    return data.normalise(images, PREPARATION)


def lenet(seed: int = 1, **options: Any) -> nn.Module:
    """Masks, batch norm, dropout and a random activation, so everything that a step could disturb."""
    return build("lenet", task=Task(CLASSES, 1, SIZE), seed=seed, **{"nfilters": 3, "act": "rrelu"} | options)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def trained(
    model: nn.Module, recipe: Recipe = RECIPE, *, prepare: Prepare = augmented, **given: Any
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """State and epochs after a whole run."""
    epochs = list(train(model, IMAGES, LABELS, recipe, start(model, recipe), Hooks(prepare=prepare, **given)))
    return values(model), epochs


def untimed(epochs: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in epochs]


# --- the bare loop --------------------------------------------------------------------------------------------------

Make = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
BY_HAND: dict[str, Make] = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True),
    "Adam": lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.9, 0.999), weight_decay=1e-4, fused=True),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.9, weight_decay=1e-4),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.999), weight_decay=1e-4, fused=True),
}


def by_hand(model: nn.Module, make: Make, recipe: Recipe) -> Iterator[tuple[float, int, int]]:
    """Sum of losses, right answers and images of each epoch of a run without anything around it."""
    optimizer = make([p for p in model.parameters() if p.requires_grad], recipe.learning_rate)
    order, augmentation = stream(recipe.seed, "order"), stream(recipe.seed, "augmentation")
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(stream(recipe.seed, "forward").get_state())
        model.train()
        for epoch in range(recipe.nepochs):
            batches = torch.randperm(COUNT, generator=order).split(recipe.batch_size)
            if recipe.drop_last:
                batches = [rows for rows in batches if len(rows) == recipe.batch_size]
            total, right = 0.0, 0
            for step, rows in enumerate(batches):
                factor = lr_factor(recipe.schedule, recipe.dataset, epoch, recipe.nepochs, step, len(batches))
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
                logits = model(augmented(IMAGES[rows], augmentation))
                loss = functional.cross_entropy(logits, LABELS[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
                right += sum(int(row.argmax()) == int(label) for row, label in zip(logits, LABELS[rows], strict=True))
            yield total, right, sum(map(len, batches))


def test_every_optimiser_has_a_row_and_can_be_asked_for() -> None:
    assert set(BY_HAND) == set(OPTIMIZERS)
    assert [TrainConfig(optim_method=name).optim_method for name in OPTIMIZERS] == list(OPTIMIZERS)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("drop_last", [False, True], ids=["ragged", "dropped"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_a_bare_loop_bit_for_bit(optimizer: str, drop_last: bool, schedule: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.003, schedule=schedule, drop_last=drop_last)
    model, bare = lenet(), lenet()
    state, epochs = trained(model, recipe)
    want = list(by_hand(bare, BY_HAND[optimizer], recipe))
    assert same(state, values(bare))
    assert not same(state, values(lenet()))
    assert [(e.loss, e.correct, e.images) for e in epochs] == want
    assert [e.images for e in epochs] == [20 if drop_last else COUNT] * 3
    assert all(e.seconds > 0 for e in epochs)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_settings_reach_the_optimiser(momentum: float) -> None:
    recipe = replace(RECIPE, momentum=momentum, weight_decay=0.1)

    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=0.1)

    bare = lenet()
    list(by_hand(bare, make, recipe))
    assert same(trained(lenet(), recipe)[0], values(bare))


def test_betas_reach_adam() -> None:
    recipe = replace(RECIPE, optimizer="Adam", betas=(0.5, 0.9))
    bare = lenet()
    fused = {"weight_decay": 1e-4, "fused": True}
    list(by_hand(bare, lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.5, 0.9), **fused), recipe))
    assert same(trained(lenet(), recipe)[0], values(bare))


def test_an_unknown_optimiser_is_refused_with_the_choice() -> None:
    with pytest.raises(ValueError, match=in_order("optim_method 'sgd' ; SGD, Adam, RMSprop, AdamW")):
        make_optimizer(lenet(), replace(RECIPE, optimizer="sgd"))


def test_evaluating_between_epochs_changes_nothing() -> None:
    model = lenet()
    for _ in train(model, IMAGES, LABELS, RECIPE, start(model, RECIPE), Hooks(prepare=augmented)):
        model.eval()
        torch.rand(5)  # somebody else's numbers
    assert same(values(model), trained(lenet())[0])


# --- steps, rates, order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch", "drop_last", "steps"),
    [(23, 5, False, 5), (23, 5, True, 4), (20, 5, False, 4), (20, 5, True, 4), (3, 5, False, 1), (5, 5, True, 1)],
)
def test_steps_of_an_epoch(images: int, batch: int, drop_last: bool, steps: int) -> None:
    assert steps_per_epoch(images, replace(RECIPE, batch_size=batch, drop_last=drop_last)) == steps


def test_an_epoch_without_a_full_batch_is_refused_where_short_ones_are_dropped() -> None:
    with pytest.raises(UserError, match=in_order("--batch-size 24 23")) as caught:
        trained(lenet(), replace(RECIPE, batch_size=24, drop_last=True))
    assert "--batch-size" in str(caught.value)


def rates(recipe: Recipe) -> list[float]:
    seen: list[float] = []

    def look(state: State) -> bool:
        seen.extend(group["lr"] for group in state.optimizer.param_groups)
        return True

    trained(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), recipe, after_step=look)
    return seen


def test_cosine_is_applied_at_every_step() -> None:
    want = [0.02 * (1 + math.cos(math.pi * t / 15)) / 2 for t in range(15)]
    assert rates(RECIPE) == pytest.approx(want)


def test_a_published_schedule_is_applied_epoch_by_epoch() -> None:
    """MNIST in the reproduction: x 0.2 from the 0-based epoch 29 on."""
    have = rates(replace(RECIPE, nepochs=31, schedule="kl", dataset="MNIST"))
    assert have == pytest.approx([0.02] * 29 * 5 + [0.004] * 2 * 5)


def asked(model: nn.Module, recipe: Recipe = RECIPE, prepare: Prepare = augmented) -> list[list[int]]:
    """The numbers of the images of every batch."""
    batches = []

    def look(images: Tensor, generator: torch.Generator) -> Tensor:
        batches.append(images[:, 0, 0, 0].tolist())
        return prepare(images, generator)

    trained(model, recipe, prepare=look)
    return batches


def test_every_image_once_an_epoch_in_another_order_each_time() -> None:
    batches = asked(lenet())
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3] * 3
    epochs = [[number for batch in batches[first : first + 5] for number in batch] for first in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(COUNT))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


# --- streams --------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_another_seed_others() -> None:
    want = trained(lenet())[0]
    for outside in (1, 2):
        model = lenet()
        torch.manual_seed(outside)  # the global seed must not matter
        before = torch.get_rng_state()
        assert same(trained(model)[0], want)
        assert torch.equal(torch.get_rng_state(), before), "training must leave the global stream alone"
    assert not same(trained(lenet(), replace(RECIPE, seed=4))[0], want)


def test_each_stream_is_its_own() -> None:
    """Draws from one stream do not move another: the order depends on the seed alone."""
    want = asked(lenet())
    assert asked(lenet(), prepare=plainly) == want
    assert asked(lenet(dropout=0.0, act="relu")) == want
    assert asked(lenet(seed=9)) == want
    assert asked(lenet(), replace(RECIPE, seed=4)) != want


def test_augmentation_does_not_depend_on_what_the_net_draws() -> None:
    def seen(model: nn.Module, seed: int = RECIPE.seed) -> list[Tensor]:
        inputs: list[Tensor] = []

        def look(images: Tensor, generator: torch.Generator) -> Tensor:
            inputs.append(augmented(images, generator))
            return inputs[-1]

        trained(model, replace(RECIPE, seed=seed), prepare=look)
        return inputs

    want = seen(lenet())
    assert all(map(torch.equal, seen(lenet(dropout=0.0, act="relu")), want))
    assert not any(map(torch.equal, seen(lenet(), seed=4), want))


def test_streams_of_one_seed_share_no_numbers() -> None:
    names = ("init", "masks", "order", "augmentation", "forward", "subset", "validation")
    draws = [tuple(torch.rand(4, generator=stream(seed, name)).tolist()) for seed in (1, 2) for name in names]
    assert len(set(draws)) == len(draws)


# --- what is trained and what is not --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moves:
    """A net, the parts of it that must stay and whether its masks move."""

    net: str
    options: dict[str, Any]
    frozen: tuple[str, ...] = ()
    masks: bool = False


MOVES = [
    Moves("lenet", {"nfilters": 3}),
    Moves("lenet", {"nfilters": 3, "train_masks": True}, masks=True),
    Moves("perturb_resnet18", {"nfilters": 3, "first_filter_size": 3}),
    Moves(
        "perturb_resnet18",
        {"nfilters": 3, "first_filter_size": 3, "nmasks": 2, "unique_masks": False, "train_masks": True},
        masks=True,
    ),
    Moves("noiseresnet18", {"nfilters": 3, "first_filter_size": 3, "code": "kl"}),
    Moves("noiseresnet18", {"nfilters": 3, "first_filter_size": 3, "code": "up"}, frozen=("stem.0.weight",)),
]


@pytest.mark.parametrize("row", MOVES, ids=lambda row: f"{row.net}-{'-'.join(map(str, row.options.values()))}")
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_all_that_is_trainable_moves_and_nothing_else(row: Moves, optimizer: str) -> None:
    model = build(row.net, task=Task(CLASSES, 1, SIZE), **row.options)
    before = values(model)
    after, _ = trained(model, replace(RECIPE, nepochs=1, optimizer=optimizer))
    masks = {f"{name}.stored" for name, part in model.named_modules() if isinstance(part, Masks)}
    assert masks
    assert masks.isdisjoint(row.frozen)
    parameters = dict(model.named_parameters())
    assert masks <= parameters.keys() if row.masks else masks.isdisjoint(parameters)
    for name, value in after.items():
        stays = name in row.frozen or (name in masks and not row.masks)
        assert torch.equal(before[name], value) == stays, name


@pytest.mark.parametrize("row", MOVES, ids=lambda row: f"{row.net}-{'-'.join(map(str, row.options.values()))}")
def test_weight_decay_is_on_every_trained_tensor(row: Moves) -> None:
    """After one plain SGD step, decay has taken lr * decay * value away: norms, biases and trained masks included."""
    recipe = replace(RECIPE, nepochs=1, batch_size=COUNT, momentum=0.0, learning_rate=0.5, schedule="constant")
    model, with_decay = (build(row.net, task=Task(CLASSES, 1, SIZE), **row.options).double() for _ in range(2))
    before = values(model)

    def double(images: Tensor, generator: torch.Generator) -> Tensor:
        return plainly(images, generator).double()

    plain, _ = trained(model, replace(recipe, weight_decay=0.0), prepare=double)
    decayed, _ = trained(with_decay, replace(recipe, weight_decay=0.1), prepare=double)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == set(row.frozen)
    for name, parameter in model.named_parameters():
        taken = 0.05 * before[name] if parameter.requires_grad else 0 * before[name]
        torch.testing.assert_close(plain[name] - decayed[name], taken, rtol=1e-6, atol=1e-9, msg=name)


# --- stopping and going on ------------------------------------------------------------------------------------------

# Everything a step may draw from or leave behind: masks trained, drawn anew, or fixed; momentum or Adam's moments.
NETS: dict[str, dict[str, Any]] = {"trained masks": {"train_masks": True}, "redrawn masks": {"redraw_masks": "train"}}


@cache
def straight(optimizer: str, net: str) -> tuple[dict[str, Tensor], list[Epoch], dict[str, Any]]:
    recipe = replace(RECIPE, optimizer=optimizer)
    model = lenet(**NETS[net])
    state = start(model, recipe)
    epochs = list(train(model, IMAGES, LABELS, recipe, state, Hooks(prepare=augmented)))
    return values(model), untimed(epochs), through_file(state.state_dict())


def through_file(content: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def equal(one: Any, two: Any) -> bool:
    """Equality of nested plain data with tensors in it."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


def in_pieces(recipe: Recipe, options: dict[str, Any], stops: set[int]) -> tuple[nn.Module, State, list[Epoch], int]:
    """A run that stops after each of these steps and goes on in a new net, from what a file can hold."""
    done, epochs, saved = 0, [], None

    def count(state: State) -> bool:
        nonlocal done
        done += 1
        return done not in stops

    for piece in range(len(stops) + 1):
        model = lenet(seed=100 + piece if piece else 1, **options)
        state = start(model, replace(recipe, seed=recipe.seed if piece == 0 else 99))
        if saved is not None:
            model.load_state_dict(saved["model"])
            state.load_state_dict(saved["state"])
        epochs += train(model, IMAGES, LABELS, recipe, state, Hooks(prepare=augmented, after_step=count))
        saved = through_file({"model": model.state_dict(), "state": state.state_dict()})
    return model, state, epochs, done


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@given(stops=st.sets(st.integers(1, 15), min_size=1, max_size=4))
@example(stops={1})
@example(stops={5})
@example(stops={15})
@example(stops={4, 5, 6})
@settings(deadline=None, max_examples=8)
def test_stopping_anywhere_and_going_on_equals_the_straight_run(optimizer: str, net: str, stops: set[int]) -> None:
    model, state, epochs, done = in_pieces(replace(RECIPE, optimizer=optimizer), NETS[net], stops)
    weights, reached, final = straight(optimizer, net)
    assert done == 15, "no step is lost and none made twice"
    assert same(values(model), weights)
    assert untimed(epochs) == reached
    assert equal(state.state_dict(), final)


def test_a_stop_is_between_two_steps_and_yields_no_unfinished_epoch() -> None:
    model = lenet()
    state = start(model, RECIPE)
    stopped = list(
        train(model, IMAGES, LABELS, RECIPE, state, Hooks(prepare=augmented, after_step=lambda s: s.step < 3))
    )
    assert stopped == []
    assert (state.epoch, state.step, state.reached.images) == (0, 3, 15)


def test_a_longer_run_continues_a_shorter_one() -> None:
    recipe = replace(RECIPE, schedule="constant")
    model = lenet()
    state = start(model, recipe)
    list(train(model, IMAGES, LABELS, replace(recipe, nepochs=1), state, Hooks(prepare=augmented)))
    assert (state.epoch, state.step) == (1, 0)
    list(train(model, IMAGES, LABELS, recipe, state, Hooks(prepare=augmented)))
    assert same(values(model), trained(lenet(), recipe)[0])
    assert list(train(model, IMAGES, LABELS, recipe, state, Hooks(prepare=augmented))) == [], "nothing is left to do"


# --- losses that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(value: float) -> None:
    """After 1 epoch and 2 steps; the place (counted from 1), the rate and the remedy; nothing learnt from the batch."""
    recipe = replace(RECIPE, schedule="constant")
    model = lenet()
    state = start(model, recipe)
    good: list[dict[str, Tensor]] = []
    moments: list[dict[str, Any]] = []

    def spoilt(images: Tensor, generator: torch.Generator) -> Tensor:
        x = augmented(images, generator)
        if (state.epoch, state.step) == (1, 2):
            x[0, 0, 0, 0] = value
            good.append({name: p.detach().clone() for name, p in model.named_parameters()})
            moments.append(through_file(state.optimizer.state_dict()))
        return x

    with pytest.raises(NonFiniteError) as caught:
        list(train(model, IMAGES, LABELS, recipe, state, Hooks(prepare=spoilt)))
    assert re.search(in_order("nan epoch 2 step 3 0.02 ; --learning-rate 0.002"), str(caught.value))
    assert same({name: p.detach() for name, p in model.named_parameters()}, good[0])
    assert equal(through_file(state.optimizer.state_dict()), moments[0])
    assert (state.epoch, state.step, state.reached.images) == (1, 2, 10)


def test_the_rate_named_in_the_message_is_the_one_of_the_step() -> None:
    recipe = replace(RECIPE, learning_rate=1e30)
    with pytest.raises(NonFiniteError, match=r"epoch 1\b.*step 2\b.* 9\.\d+e\+29;.*--learning-rate 9\.\d+e\+28"):
        trained(lenet(), recipe)
