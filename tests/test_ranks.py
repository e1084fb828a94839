"""One run on several processes: what one process would do, where that can be; said and tested, where it cannot.

The fast tests start two processes once and let them do everything; the slow ones start `torchrun` as a user would.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn

from perturblab import data
from perturblab.errors import NonFiniteError, RankLostError, UserError
from perturblab.layers import BatchOut, Masks, Mixing, Noise, PerturbConv2d, batch_step
from perturblab.records.config import TrainConfig
from perturblab.runs.open import check_ranks, open_run
from perturblab.system.terminal import Show
from perturblab.training import evaluate
from perturblab.training.loop import Epoch, Hooks, Recipe, start, train
from perturblab.training.ranks import ALONE, Ranks
from told import in_order

COUNT, CLASSES, BATCH = 23, 4, 5  # the last batch has 3 rows: 2 and 1 on two ranks
PREPARATION = data.Preparation((0.4,), (0.3,), crop_padding=1, flip=True)
RECIPE = Recipe(nepochs=2, batch_size=BATCH, learning_rate=0.1, schedule="constant", seed=3)
CLOSE = {"rtol": 0.0, "atol": 2e-5}  # sums in another order; measured: below 2e-6
MIXINGS = {
    "paper": Mixing(eta="U[0,0.9]", k=0.5),
    "count": Mixing(eta=0.5, k=2, partners="different-class", detach=False),
    "noise": Mixing(eta="U[0,0.9]", k=1.0, partners="noise", rows="random", eta_per="image"),
    "shared": Mixing(eta="U[0,0.9]", k=0.8, partners="permutation", shared="both"),
}


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(CLASSES, (COUNT,), generator=generator)


IMAGES, LABELS = samples()


def prepared(images: Tensor, generator: torch.Generator) -> Tensor:
    return data.normalise(data.augment(images, PREPARATION, generator), PREPARATION)


def net(*between: nn.Module) -> nn.Module:
    """Masks, two learned layers, and no batch norm."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        perturbed = PerturbConv2d(Masks(1, (8, 8), Noise(nmasks=3), generator=generator), 6)
        return nn.Sequential(perturbed, *between, nn.Flatten(), nn.Linear(6 * 64, CLASSES))


def sites(mixing: Mixing) -> list[nn.Module]:
    return [BatchOut(mixing, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)]


@contextmanager
def during(ranks: Ranks, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    labels, across = ranks.batch(y)
    with batch_step(labels, across=across):
        yield x


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(
    ranks: Ranks, model: nn.Module, saved: dict[str, Any] | None = None, **given: Any
) -> tuple[dict[str, Tensor], list[Epoch], dict[str, Any]]:
    """Weights, epochs and state after a whole run, or after the rest of one."""
    state = start(model, RECIPE, ranks)
    if saved is not None:
        state.load_state_dict(saved)
    surround: Callable[..., AbstractContextManager[Tensor]] = partial(during, ranks)
    epochs = list(train(model, IMAGES, LABELS, RECIPE, state, Hooks(prepare=prepared, during=surround, **given)))
    return values(model), epochs, state.state_dict()


class Seen(nn.Module):
    """Remembers what a dropout layer lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.kept = nn.Dropout(0.5), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.dropout(torch.ones(len(x), 32)))
        return x


# --- two processes --------------------------------------------------------------------------------------------------


def _told(action: Callable[[], object]) -> str:
    try:
        action()
    except (UserError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _disagree(ranks: Ranks) -> None:
    with ranks.agreed():
        if ranks.rank == 1:
            raise UserError("only rank 1 has met this")


def _other_masks(ranks: Ranks, folder: Path) -> None:
    config = TrainConfig(dataset_train="digits", train_size=40, net_type="lenet", nfilters=3, device="cpu")
    run = open_run(config, folder, Show(quiet=True), ranks)
    check_ranks(run)
    if not ranks.first:
        next(module for module in run.model.modules() if isinstance(module, Masks)).stored[0, 0, 0, 0] += 1e-3
    check_ranks(run)


def _answers(ranks: Ranks, bad: int | None = None) -> tuple[Tensor, float]:
    model, images = net(nn.Identity()).eval(), IMAGES.float() / 255
    if bad is not None:
        images[bad] = float("nan")
    with ranks.agreed():
        found = evaluate.answers(model, images, LABELS, part=ranks.rows, batch_size=4)
    return ranks.sum(found.correct.int()), float(ranks.sum(torch.tensor(found.loss)))


def _defended(ranks: Ranks, defence: str, folder: Path) -> tuple[dict[str, Tensor], list[Epoch], dict[str, Any]]:
    """Three epochs of adversarial training with augmentation, without batch norm and dropout."""
    given: dict[str, Any] = {"net_type": "batchout_mnist", "nfilters": 2, "dropout": 0.0, "defence_eps": "0.1"}
    shape: dict[str, Any] = {"train_size": 60, "batch_size": 25, "nepochs": 3, "learning_rate": 0.1}
    config = TrainConfig(dataset_train="digits", device="cpu", defence=defence, **given, **shape)
    run = open_run(config, folder, Show(quiet=True), ranks)
    run.built = replace(run.built, preparation=replace(run.built.preparation, crop_padding=1, flip=True))
    steps = train(
        run.model,
        run.training.images,
        run.training.labels,
        run.built.recipe,
        run.state,
        Hooks(prepare=run.augmented, during=run.during),
    )
    epochs = list(steps)
    return values(run.model), epochs, run.state.state_dict()


def _stopped_and_resumed(ranks: Ranks) -> tuple[dict[str, Tensor], list[Epoch], dict[str, Any]]:
    """Stop in the middle of the first epoch, and go on in a new net with what rank 0 has kept."""
    model = net(nn.BatchNorm2d(6), *sites(MIXINGS["paper"]), nn.Dropout(0.5))
    _, epochs, state = trained(ranks, model, after_step=lambda state: state.step < 3)
    assert epochs == []
    kept = ranks.every((values(model), state))[0]
    again = net(nn.BatchNorm2d(6), *sites(MIXINGS["paper"]), nn.Dropout(0.5))
    again.load_state_dict(kept[0])
    return trained(ranks, again, kept[1])


def _work(rank: int, world: int, folder: Path) -> None:
    """All that a rank is asked about, in one file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    ranks, seen = Ranks(rank, world), Seen()
    found: dict[str, Any] = {name: trained(ranks, net(*sites(mixing))) for name, mixing in MIXINGS.items()}
    found["plain"] = trained(ranks, net())
    found["dropout"] = (*trained(ranks, net(seen)), seen.kept)
    found["norm"] = trained(ranks, net(nn.BatchNorm2d(6)), after_step=lambda state: False)
    found["straight"] = trained(
        ranks, net(nn.BatchNorm2d(6), *sites(MIXINGS["paper"]), nn.Dropout(0.5)), after_step=lambda state: True
    )
    found["resumed"] = _stopped_and_resumed(ranks)
    found |= {defence: _defended(ranks, defence, folder) for defence in ("fgsm", "fgsm-half", "pgd")}
    found["answers"] = _answers(ranks)
    found["not finite"] = _told(partial(_answers, ranks, bad=1))
    found["disagree"] = _told(partial(_disagree, ranks))
    found["masks"] = _told(partial(_other_masks, ranks, folder / "run"))
    found["total"], found["every"], found["any"] = ranks.total(rank + 1), ranks.every(f"r{rank}"), ranks.any(rank == 1)
    if rank == world - 1:
        torch.save(found, folder / f"{rank}.pt")
        distributed.destroy_process_group()
        return
    try:
        while True:
            ranks.total(1)
    except RankLostError as error:
        found["lost"] = str(error)
    torch.save(found, folder / f"{rank}.pt")


Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERTURBLAB_NATIVE", "0")  # no time to compile in every process
        torch.multiprocessing.spawn(_work, (request.param, folder), request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **CLOSE)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["plain", *MIXINGS])
def test_a_run_is_that_of_one_process(name: str, found: Found) -> None:
    """Order, augmentation, the weight of the uneven batch, and BatchOut with the partners of the whole batch."""
    between = sites(MIXINGS[name]) if name in MIXINGS else []
    weights, epochs, _ = trained(ALONE, net(*between))
    for rank in found:
        close(rank[name][0], weights)
        for one, want in zip(rank[name][1], epochs, strict=True):
            assert (one.correct, one.images) == (want.correct, want.images)
            assert one.loss == pytest.approx(want.loss, abs=1e-4)
    assert same(found[0][name][0], found[1][name][0]), "bit for bit the same on all ranks"


def test_the_tolerance_would_show_a_wrong_weight(found: Found) -> None:
    """Equal weights for uneven shares, what averaging the gradients of the ranks comes to, are not close."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perturblab.training.loop.cross_entropy", _mean_of_means)
        wrong, _, _ = trained(ALONE, net())
    assert float((wrong["2.weight"] - found[0]["plain"][0]["2.weight"]).abs().max()) > 100 * CLOSE["atol"]


def _mean_of_means(logits: Tensor, y: Tensor) -> Tensor:
    parts = [nn.functional.cross_entropy(logits[rank::2], y[rank::2]) for rank in range(2)]
    return torch.stack(parts).mean()


@pytest.mark.parametrize("defence", ["fgsm", "fgsm-half"])
def test_training_on_adversarial_images_is_that_of_one_process(defence: str, found: Found, tmp_path: Path) -> None:
    """12 of 25 rows of the batch are attacked, 5 of 10 in the last one, however the ranks share them."""
    weights, epochs, state = _defended(ALONE, defence, tmp_path)
    for rank in found:
        close(rank[defence][0], weights)
        assert [epoch.correct for epoch in rank[defence][1]] == [epoch.correct for epoch in epochs]
        assert torch.equal(rank[defence][2]["augmentation"], state["augmentation"])


def test_random_starts_are_those_of_a_rank_and_leave_the_ranks_alike(found: Found) -> None:
    for rank in found[1:]:
        assert same(rank["pgd"][0], found[0]["pgd"][0])
        assert torch.equal(rank["pgd"][2]["augmentation"], found[0]["pgd"][2]["augmentation"])


def test_masks_are_untouched(found: Found) -> None:
    masks = {name: value for name, value in net().state_dict().items() if name.endswith("stored")}
    assert masks
    for name, value in masks.items():
        assert all(torch.equal(rank["plain"][0][name], value) for rank in found)


def test_batch_norm_sees_its_own_rows_and_keeps_the_mean_of_all(found: Found) -> None:
    world, model = len(found), net(nn.BatchNorm2d(6))
    order, augmentation = start(model, RECIPE).order, start(model, RECIPE).augmentation
    rows = torch.randperm(COUNT, generator=order)[:BATCH]
    with torch.no_grad():
        x = model[0](prepared(IMAGES[rows], augmentation))  # type: ignore[operator]
    shares = [x[rank::world].transpose(0, 1).flatten(1) for rank in range(world)]
    weights = [len(x[rank::world]) / len(x) for rank in range(world)]
    mean = sum(w * share.mean(1) for w, share in zip(weights, shares, strict=True))
    var = sum(w * share.var(1) for w, share in zip(weights, shares, strict=True))
    for rank in found:
        torch.testing.assert_close(rank["norm"][0]["1.running_mean"], 0.1 * torch.as_tensor(mean))
        torch.testing.assert_close(rank["norm"][0]["1.running_var"], 0.9 + 0.1 * torch.as_tensor(var))


def test_ranks_drop_different_units_and_stand_alike_afterwards(found: Found) -> None:
    first, second = found[0]["dropout"], found[1]["dropout"]
    assert len(first[3]) == 2 * 5
    for one, two in zip(first[3], second[3], strict=True):
        assert not torch.equal(one[:1], two[:1])
    assert not torch.equal(first[3][0][:1], first[3][1][:1]), "and others in the next step"
    assert torch.equal(first[2]["forward"], second[2]["forward"])
    assert torch.equal(first[2]["augmentation"], second[2]["augmentation"])


def test_resumed_from_what_rank_0_keeps_equals_the_straight_run(found: Found) -> None:
    for rank in found:
        assert same(rank["resumed"][0], rank["straight"][0])
        assert rank["resumed"][2]["ranks"] == len(found)
        assert [replace(e, seconds=0) for e in rank["resumed"][1]] == [
            replace(e, seconds=0) for e in rank["straight"][1]
        ]
    assert "ranks" not in trained(ALONE, net())[2], "the checkpoint of one process is as it was"


def test_every_image_is_counted_once(found: Found) -> None:
    correct, loss = _answers(ALONE)
    assert 0 < int(correct.sum()) < COUNT
    for rank in found:
        assert torch.equal(rank["answers"][0], correct)
        assert rank["answers"][1] == pytest.approx(loss, rel=1e-6)


def test_what_one_rank_meets_ends_all_with_the_same_words(found: Found) -> None:
    for rank in found:
        assert rank["disagree"] == "UserError: only rank 1 has met this"
        assert re.match(r"NonFiniteError: logits of images 1 to \d.*;", rank["not finite"])


def test_other_masks_on_one_rank_are_refused(found: Found) -> None:
    for number, rank in enumerate(found):
        assert re.search(in_order(f"masks ranks {number} {0 if number else 1}"), rank["masks"])


def test_what_ranks_know_together(found: Found) -> None:
    world = len(found)
    for rank in found:
        assert (rank["total"], rank["any"]) == (world * (world + 1) // 2, True)
        assert rank["every"] == [f"r{number}" for number in range(world)]


def test_a_rank_that_has_ended_is_noticed(found: Found) -> None:
    for rank in found[:-1]:
        assert re.search(in_order("another rank ended"), rank["lost"])
    assert "lost" not in found[-1]


# --- one process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_are_all_rows_once_without_padding(world: int) -> None:
    batch = torch.arange(7)
    shares = [Ranks(rank, world).share(batch) for rank in range(world)]
    assert sorted(torch.cat(shares).tolist()) == batch.tolist()
    assert [len(share) for share in shares] == [Ranks(rank, world).count(7) for rank in range(world)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_touched() -> None:
    x, generator = torch.rand(3, 2), torch.Generator()
    assert ALONE.share(x) is x
    assert ALONE.sum(x) is x
    assert ALONE.own(generator) is generator
    assert ALONE.batch(x) == (x, None)


def test_streams_of_ranks_differ_and_the_common_one_moves_alike() -> None:
    draws, common = [], []
    for rank in range(3):
        generator = torch.Generator().manual_seed(1)
        draws.append(float(torch.rand((), generator=Ranks(rank, 3).own(generator))))
        common.append(float(torch.rand((), generator=generator)))
    assert len(set(draws)) == 3
    assert len(set(common)) == 1


@pytest.mark.parametrize(
    ("size", "flags", "wrong"),
    [
        (65, {"net_type": "batchout_mnist"}, "1 65 training 2 ranks ; batch ranks"),
        (67, {}, "3 67 training 2 ranks single row ; batch"),
        (68, {"defence": "fgsm-half", "defence_mode": "train"}, "4 68 training 2 ranks single row ; batch"),
    ],
)
def test_a_last_batch_that_is_too_small_for_the_ranks_is_refused(
    size: int, flags: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"net_type": "perturb_resnet18", "nfilters": 2, **flags}
    config = TrainConfig(dataset_train="digits", train_size=size, device="cpu", **given)
    open_run(config, tmp_path, Show(quiet=True))
    with pytest.raises(UserError, match=in_order(f"--batch-size {config.batch_size} {wrong}")):
        open_run(config, tmp_path, Show(quiet=True), Ranks(0, 2))
