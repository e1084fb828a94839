"""The flags of a defence, its record, and how images are prepared for it."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from defence_runs import config, executed, in_pixels, opened, recorded, watched
from perturblab import data
from perturblab.attacks import Threat
from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.layers import Mixing
from perturblab.models import Task, build
from perturblab.runs.build import make_recipe
from perturblab.runs.defence import make_adversary, make_mixings
from perturblab.seeding import stream
from perturblab.training.adversarial import Adversary
from perturblab.training.schedules import lr_factor
from told import in_order

# --- flags and records ----------------------------------------------------------------------------------------------


def mixings(net: str = "batchout_mnist", **given: Any) -> dict[str, Mixing]:
    options: dict[str, Any] = {"bottleneck_resnet": {"blocks": 1}}.get(net, {})
    settings = config(defence="batchout", **{"net_type": net, "nfilters": 4} | options | given)
    return make_mixings(settings, build(net, task=Task(10, 1, (8, 8)), nfilters=4, **options))


@pytest.mark.parametrize(
    ("net", "sites", "k"),
    [
        ("batchout_mnist", {"conv1": "0.05", "conv2": "0.1", "fc1": "0.1"}, 0.5),
        (
            "batchout_cifar",
            {f"conv{n}": "U[0,0.1]" for n in (1, 2, 3, 4)} | dict.fromkeys(("conv5", "fc1", "fc2"), "U[0,0.15]"),
            0.5,
        ),
        ("bottleneck_resnet", {"flatten": "0.3"}, 1.0),
        ("vgg19", {f"features.{n}": "0.2" for n in (11, 13, 15, 17, 19)}, 1.0),
        ("vgg19_tied", {f"features.{n}": "0.2" for n in (11, 13, 15, 17, 19)}, 1.0),
    ],
)
def test_without_flags_batchout_is_as_published_for_the_net(net: str, sites: dict[str, str], k: float) -> None:
    """The paper: half of the rows, eta of tables 1 and 2. Its reproduction: all rows."""
    found = mixings(net)
    assert {name: str(mixing.magnitude) for name, mixing in found.items()} == sites
    for mixing in found.values():
        assert (mixing.moved(100), mixing.rows, mixing.partners) == (int(100 * k), "first", "replacement")
        assert (mixing.eta_per, mixing.detach, mixing.inference) == ("call", True, False)


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({"batchout_eta": "0.3:0.6,-0.2:0.4"}, {"eta": "0.3:0.6,-0.2:0.4"}),
        ({"batchout_k": "1"}, {"k": 1}),
        ({"batchout_k": "1.0"}, {"k": 1.0}),
        ({"batchout_k": "0"}, {"k": 0}),
        ({"batchout_rows": "random"}, {"rows": "random"}),
        ({"batchout_partners": "noise"}, {"partners": "noise"}),
        ({"batchout_eta_per": "image"}, {"eta_per": "image"}),
        ({"batchout_shared": "both"}, {"shared": "both"}),
        ({"batchout_detach": False}, {"detach": False}),
    ],
    ids=str,
)
def test_a_flag_goes_to_every_place_and_the_rest_stays_published(flags: dict[str, Any], want: dict[str, Any]) -> None:
    before, found = mixings(), mixings(**flags)
    assert before.keys() == found.keys()
    for name, mixing in found.items():
        given, own = asdict(mixing), asdict(before[name])
        assert given == own | want
        assert type(given["k"]) is type((own | want)["k"]), "1 is a row, 1.0 all of them"


@pytest.mark.parametrize(
    ("net", "at", "want"),
    [
        ("batchout_mnist", "all", {"conv1": "0.05", "conv2": "0.1", "fc1": "0.1"}),
        ("batchout_mnist", "last", {"fc1": "0.1"}),
        ("batchout_mnist", "alternate", {"conv1": "0.05", "fc1": "0.1"}),
        ("batchout_mnist", "all-after:conv2", {"conv2": "0.1", "fc1": "0.1"}),
        ("batchout_mnist", "conv1, fc1", {"conv1": "0.05", "fc1": "0.1"}),
        ("batchout_mnist", "conv*", {"conv1": "0.05", "conv2": "0.1"}),
        ("lenet", None, {"0.0": "0.1", "2.0": "0.1", "4.0": "0.1", "8": "0.1"}),
        ("lenet", "8", {"8": "0.1"}),
    ],
)
def test_places_are_chosen_by_a_rule(net: str, at: str | None, want: dict[str, str]) -> None:
    """The subsets of figure 4b: a published place keeps its published magnitude."""
    found = mixings(net, batchout_at=at)
    assert {name: str(mixing.magnitude) for name, mixing in found.items()} == want


@pytest.mark.parametrize(
    ("flags", "dataset", "want"),
    [
        ({"defence": "none"}, "MNIST", None),
        ({"defence": "batchout"}, "MNIST", None),
        ({"defence": "fgsm"}, "MNIST", Adversary(Threat("linf", 0.3))),
        ({"defence": "fgsm-half"}, "CIFAR10", Adversary(Threat("linf", 8 / 255), share=0.5)),
        ({"defence": "fgsm-half", "defence_eps": "0.1"}, "MNIST", Adversary(Threat("linf", 0.1), share=0.5)),
        ({"defence": "fgsm", "defence_eps": "4/255"}, "digits", Adversary(Threat("linf", 4 / 255))),
        ({"defence": "pgd"}, "CIFAR10", Adversary(Threat("linf", 8 / 255), steps=10)),
        ({"defence": "pgd", "defence_steps": 7}, "digits", Adversary(Threat("linf", 0.3), steps=7)),
        ({"defence": "fgsm", "defence_mode": "train"}, "digits", Adversary(Threat("linf", 0.3), training=True)),
    ],
    ids=str,
)
def test_flags_decide_the_adversary(flags: dict[str, Any], dataset: str, want: Adversary | None) -> None:
    assert make_adversary(config(**flags), dataset) == want


@pytest.mark.parametrize("wrong", [{"share": -0.1}, {"share": 1.5}, {"steps": 0}], ids=str)
def test_an_adversary_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=in_order("share steps")):
        Adversary(Threat("linf", 0.1), **wrong)


DEFENCE_FLAGS = ("defence", "batchout_", "defence_")


def defence_flags(said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name.startswith(DEFENCE_FLAGS)}


def test_the_record_holds_every_place_with_all_its_settings(tmp_path: Path) -> None:
    executed(tmp_path / "run", defence="batchout", batchout_k="3", batchout_at="conv1,relu1")
    assert defence_flags(recorded(tmp_path / "run")) == {
        "defence": "batchout",
        "batchout_at": "conv1,relu1",
        "batchout_eta": "0.05;0.1",
        "batchout_k": 3,
        "batchout_rows": "first",
        "batchout_partners": "replacement",
        "batchout_eta_per": "call",
        "batchout_shared": "none",
        "batchout_detach": True,
    }


@pytest.mark.parametrize(
    ("defence", "flags", "want"),
    [
        ("fgsm", {}, {"defence_mode": "eval"}),
        ("fgsm-half", {"defence_mode": "train"}, {"defence_mode": "train"}),
        ("pgd", {"defence_steps": 2}, {"defence_mode": "eval", "defence_steps": 2}),
    ],
)
def test_the_record_holds_the_adversary(
    defence: str, flags: dict[str, Any], want: dict[str, Any], tmp_path: Path
) -> None:
    executed(tmp_path / "run", defence=defence, defence_eps="1/4", **flags)
    assert defence_flags(recorded(tmp_path / "run")) == {"defence": defence, "defence_eps": "1/4", **want}


def test_a_record_without_a_defence_has_no_word_of_one(tmp_path: Path) -> None:
    executed(tmp_path / "run")
    said = recorded(tmp_path / "run")
    assert not defence_flags(said)
    assert not {"normalise", "augment"} & said.keys()


@pytest.mark.parametrize(
    "flags",
    [
        {"defence": "batchout"},
        {"defence": "batchout", "batchout_at": "conv1,relu1", "batchout_eta": "U[0,0.1];0.3:0.6,-0.2:0.4"},
        {"defence": "pgd", "defence_steps": 2, "defence_mode": "train"},
        {"defence": "fgsm-half", "normalise": False, "augment": False},
    ],
    ids=str,
)
def test_a_record_repeats_its_run(flags: dict[str, Any], tmp_path: Path) -> None:
    """Its flags are those of the command line, and give the same weights and the same flags again."""
    executed(tmp_path / "run", **flags)
    said = recorded(tmp_path / "run")
    executed(tmp_path / "again", **{name: value for name, value in said.items() if name not in ("classes",)})
    assert recorded(tmp_path / "again") == said
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("etas", ["0.1;0.2", "0.1;0.2;0.3;0.4"])
def test_as_many_magnitudes_as_places_or_one(etas: str) -> None:
    with pytest.raises(UserError, match=in_order(f"--batchout eta {etas.count(';') + 1} magnitudes 3 places")):
        mixings("batchout_mnist", batchout_eta=etas)
    assert [str(m.magnitude) for m in mixings("batchout_mnist", batchout_eta="0.1;0.2;0.3").values()] == [
        *("0.1", "0.2", "0.3")
    ]


@pytest.mark.parametrize(("net", "k", "shared"), [("batchout_cifar", 0.5, "none"), ("vgg19", 1.0, "partners")])
def test_a_place_of_ones_own_mixes_as_published_for_the_net(net: str, k: float, shared: str) -> None:
    place = {"batchout_cifar": "relu1", "vgg19": "features.12"}[net]
    (mixing,) = mixings(net, batchout_at=place).values()
    assert (mixing.k, mixing.shared, str(mixing.magnitude)) == (k, shared, "0.1")


# --- preparation ----------------------------------------------------------------------------------------------------


def test_without_normalisation_the_net_sees_pixels(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", normalise=False)
    images = run.training.images[:5]
    assert torch.equal(run.normalised(images), images.float() / 255)
    run.model.eval()
    assert torch.equal(run.in_pixels(images.float() / 255), run.model(images.float() / 255))
    usual = opened(tmp_path / "usual")
    assert not torch.allclose(usual.normalised(images), images.float() / 255)


@pytest.mark.parametrize("augment", [None, True, False])
def test_without_augmentation_images_are_trained_on_as_they_are(
    augment: bool | None, pictures: Path, tmp_path: Path
) -> None:
    given = {"dataset_train": str(pictures), "train_size": None, "net_type": "batchout_cifar", "nfilters": 2}
    run = opened(tmp_path / "run", augment=augment, batch_size=6, **given)
    own = data.preparation(run.images)
    assert own.crop_padding == 4
    assert own.flip
    assert (run.built.preparation.mean, run.built.preparation.std) == (own.mean, own.std)
    generator = stream(1, "augmentation")
    before = generator.get_state()
    images = run.training.images
    found = run.augmented(images, generator)
    assert torch.equal(found, run.normalised(images)) == (augment is False)
    assert torch.equal(generator.get_state(), before) == (augment is False)


def test_the_adversary_of_augmented_images_attacks_what_was_augmented(pictures: Path, tmp_path: Path) -> None:
    given = {"dataset_train": str(pictures), "train_size": None, "net_type": "batchout_cifar", "nfilters": 2}
    run = opened(tmp_path / "run", defence="fgsm-half", batch_size=6, **given)
    seen = watched(run)
    assert len(seen.given) == 3
    for clean, attacked in zip(seen.clean, seen.given, strict=True):
        assert torch.equal(clean[3:], attacked[3:])
        gap = (in_pixels(run, attacked[:3]) - in_pixels(run, clean[:3])).abs()
        assert 7.9 / 255 < gap.amax() <= 8 / 255 + 1e-6


def test_the_flags_work_on_the_command_line(tmp_path: Path) -> None:
    """The recipe of the reproduction's MNIST code, small: no normalisation, its schedule, BatchOut."""
    net = "--net-type batchout_mnist --nfilters 2 --dataset-train digits --train-size 20 --batch-size 10 --nthreads 1"
    recipe = "--no-normalise --no-augment --optimizer-schedule batchout --learning-rate 0.01 --momentum 0 --nepochs 12"
    defence = "--defence batchout --batchout-k 0.25 --batchout-eta U[0,0.2] --batchout-partners different-class"
    detach = "--no-batchout-detach"
    folder = tmp_path / "run"
    assert main.main(shlex.split(f"train {net} {recipe} {defence} {detach} --quiet --out {folder}")) == 0
    said = recorded(folder)
    assert (said["normalise"], said["augment"], said["optimizer_schedule"]) == (False, False, "batchout")
    assert said["batchout_eta"] == ";".join(["U[0,0.2]"] * 3)
    assert (said["batchout_k"], said["batchout_partners"], said["batchout_detach"]) == (0.25, "different-class", False)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates == pytest.approx([1e-2] * 5 + [1e-3] * 6 + [1e-5], rel=1e-12)


@pytest.mark.parametrize("dataset", ["MNIST", "CIFAR10", "digits", ""])
def test_the_batchout_schedule_epoch_by_epoch(dataset: str) -> None:
    """1e-2, 1e-3 after epoch index 4, 1e-5 after index 10, over 15 epochs; the step in the epoch does not matter."""
    want = []
    for epoch in range(15):
        rate = 1e-2
        if epoch > 4:
            rate = 1e-3
        if epoch > 10:
            rate = 1e-5
        want.append(rate)
    for step in (0, 7):
        have = [1e-2 * lr_factor("batchout", dataset, epoch, 15, step, 8) for epoch in range(15)]
        assert have == pytest.approx(want, rel=1e-12)
    assert lr_factor("batchout", dataset, 299, 300) == pytest.approx(1e-3)


def test_the_recipe_takes_the_schedule(tmp_path: Path) -> None:
    recipe = make_recipe(config(optimizer_schedule="batchout"), "MNIST")
    assert recipe.schedule == "batchout"
