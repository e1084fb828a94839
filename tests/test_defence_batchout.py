"""BatchOut in training runs: labels, places, draws; a run that stops and goes on."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defence_runs import batch, executed, opened, watched
from perturblab import layers
from perturblab.errors import UserError
from perturblab.layers import BatchOut, Mixing
from perturblab.layers.inference import ActiveBatchOut
from perturblab.models import Task, build
from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.runs import open, train
from perturblab.runs.defence import make_mixings
from perturblab.runs.run import Run
from perturblab.seeding import stream
from run_folders import QUIET, same, weights
from told import in_order

# --- BatchOut in training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
def test_batchout_layers_see_the_labels_of_their_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three places in each of four steps; whom they choose is of the right class."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def watch(name: str, count: int, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        assert name == kind
        partners = layers.draw_partners(name, count, labels, generator=generator)
        drawn.append((labels.clone(), partners))
        return partners

    # By its name the module cannot be reached: the package exports a function of that name.
    monkeypatch.setattr(importlib.import_module("perturblab.layers.mixing"), "draw_partners", watch)
    seen = watched(opened(tmp_path / "run", defence="batchout", batchout_partners=kind))
    assert len(drawn) == 12
    for at, (labels, partners) in enumerate(drawn):
        assert torch.equal(labels, seen.labels[at // 3])
        equal = labels[partners] == labels
        alone = torch.tensor([(labels == label).sum() == 1 for label in labels])
        assert (equal.all() or (~equal & ~alone).sum() == 0) if kind == "same-class" else not equal.any()


def activations(run: Run, **step: Any) -> dict[str, Tensor]:
    """Return the output of each place in a training pass without dropout."""
    found: dict[str, Tensor] = {}
    hooks = [
        run.model.get_submodule(name).register_forward_hook(
            lambda part, args, out, name=name: found.__setitem__(name, out.detach())
        )
        for name in run.built.mixings
    ]
    for part in run.model.train().modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    x, y = batch(run)
    with layers.batch_step(y, **step):
        run.model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_batchout_as_published_moves_the_first_half_at_every_place(tmp_path: Path) -> None:
    """Table 1: eta 0.05, 0.1 and 0.1; at the first place, row by row, x + eta (x_r - x) for some r of the batch."""
    run = opened(tmp_path / "run", defence="batchout")
    mixed, plain = activations(run), activations(run, active=False)
    assert list(mixed) == ["conv1", "conv2", "fc1"]
    for name, out in mixed.items():
        same_rows = [torch.equal(a, b) for a, b in zip(out, plain[name], strict=True)]
        assert all(same_rows[16:]), "the second half of the batch is entirely clean"
        assert not any(same_rows[:16]) or name == "conv1", "a row may draw itself"
    x, out = plain["conv1"].double(), mixed["conv1"].double()
    for i in range(16):
        misfit = [float((out[i] - x[i] - 0.05 * (x[r] - x[i])).abs().max()) for r in range(32)]
        assert min(misfit) < 1e-6


def test_in_evaluation_batchout_is_gone(tmp_path: Path) -> None:
    run = executed(tmp_path / "run", defence="batchout", batchout_eta="0.9", batchout_k="1.0")
    plain = build("batchout_mnist", task=Task(10, 1, (8, 8)), seed=7, nfilters=8, padding=2).eval()
    have = weights(tmp_path / "run")
    plain.load_state_dict({name: value for name, value in have.items() if not name.endswith("batchout_draws")})
    x = run.normalised(run.images.test.images)
    with torch.no_grad():
        logits = run.model.eval()(x)
        torch.testing.assert_close(logits, plain(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(logits, run.model(x)), "and nothing is drawn"
    right = int((logits.argmax(1) == run.images.test.labels).sum())
    record = store.load_record(tmp_path / "run" / "record.json")
    assert record.counts.last.correct == right


@pytest.mark.parametrize("inference", [False, True])
def test_measuring_does_not_move_the_draws(inference: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images, audited after every epoch or not; also where BatchOut stays on in evaluation."""

    def placed(config: TrainConfig, model: nn.Module) -> dict[str, Mixing]:
        return {name: replace(mixing, inference=inference) for name, mixing in make_mixings(config, model).items()}

    monkeypatch.setattr("perturblab.runs.build.make_mixings", placed)
    for audit in (False, True):
        executed(tmp_path / str(audit), defence="batchout", nepochs=2, audit=audit)
    assert same(weights(tmp_path / "False"), weights(tmp_path / "True"))


def test_active_in_evaluation_the_answers_depend_on_batch_mates_and_chance() -> None:
    """D2, the published mistake under its own name: half of the batch of 32 differs twice, single images do not."""
    net = nn.Sequential(
        nn.Linear(6, 6),
        BatchOut(Mixing(eta=0.3, k=0.5, partners="no-self"), generator=stream(1, "batchout")),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    x = torch.randn(32, 6, generator=stream(1, "x"))
    wrong = ActiveBatchOut(net)
    assert not wrong.training
    with torch.no_grad():
        one, two = wrong(x), wrong(x)
        differs = (one != two).any(1)
        assert not differs[16:].any()
        assert differs[:16].sum() >= 14
        torch.testing.assert_close(torch.cat([wrong(row[None]) for row in x]), net(x))
        assert torch.equal(net(x), net(x))


# --- stopping and going on ------------------------------------------------------------------------------------------


def test_a_run_whose_batchout_stands_elsewhere_is_not_taken_up(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", defence="batchout", nepochs=2)
    train.execute(run, QUIET, lambda: True)
    with pytest.raises(UserError, match=in_order("another net restore")):
        open.resume_run(tmp_path / "run", {"batchout_at": "conv1"}, QUIET)
