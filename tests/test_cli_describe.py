"""`perturblab models` and `describe`, and options that a net does not read."""

import json
import re
from pathlib import Path

import pytest

from builders import ONE_EPOCH, Tell
from perturblab.models import NETS, options_read
from told import in_order

RESNETS = sorted(name for name in NETS if "resnet" in name)


# --- models ----------------------------------------------------------------------------------------------------------


def test_models(tell: Tell, tmp_path: Path) -> None:
    told = tell("models")
    assert (told.code, told.err) == (0, "")
    assert [line.split()[0] for line in told.out.splitlines()] == list(NETS)
    assert not list(tmp_path.iterdir())


def test_models_as_json(tell: Tell) -> None:
    told = tell("models --json")
    assert (told.code, told.err) == (0, "")
    nets = json.loads(told.out)
    assert [net["net"] for net in nets] == list(NETS)
    for net in nets:
        assert set(net) == {"net", "about", "options"}
        assert set(net["options"]) == options_read(net["net"])


# --- describe --------------------------------------------------------------------------------------------------------


def test_describe_as_json_has_the_keys_of_the_contract(tell: Tell, tmp_path: Path) -> None:
    told = tell("describe --net-type perturb_resnet18 --nfilters 6 --nmasks 2 --first_filter_size 3 --json")
    assert (told.code, told.err) == (0, "")
    described = json.loads(told.out)
    assert list(described) == ["net", "trainable", "frozen", "masks", "macs", "receptive_field", "layers"]
    assert described["net"] == "perturb_resnet18"
    assert described["layers"]
    for row in described["layers"]:
        assert set(row) == {"name", "type", "shape", "parameters", "masks", "macs"}
    for total, part in (("masks", "masks"), ("macs", "macs"), ("trainable", "parameters")):
        assert described[total] == sum(row[part] for row in described["layers"])
    assert not list(tmp_path.iterdir())


def test_describe_says_the_same_with_and_without_json(tell: Tell) -> None:
    line = "describe --net-type lenet --nfilters 4 --train_masks --image-size 28 --channels 1 --nclasses 7"
    described, text = json.loads(tell(f"{line} --json").out), tell(line).out
    rows = text.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == [layer["name"] for layer in described["layers"]]
    for key, word in (("trainable", "trainable"), ("masks", "mask values"), ("macs", "MACs")):
        assert f"{described[key]:,} {word}" in text
    assert re.search(in_order(f"receptive field {described['receptive_field']} pixels"), text)


def test_trained_masks_are_counted_in_both(tell: Tell) -> None:
    fixed, trained = (
        json.loads(tell(f"describe --net-type lenet --nfilters 4 {flag} --json").out)
        for flag in ("--no-train_masks", "--train_masks")
    )
    assert fixed["masks"] == trained["masks"] > 0
    assert trained["trainable"] == fixed["trainable"] + fixed["masks"]


def test_describe_takes_the_image_and_the_classes(tell: Tell) -> None:
    line = "describe --net-type perturb_resnet18 --nfilters 4 --channels 2 --nclasses 7 --json"
    layers = json.loads(tell(f"{line} --image-size 12,8").out)["layers"]
    assert layers[0]["shape"] == [4, 12, 8]
    assert layers[0]["masks"] == 2 * 12 * 8
    assert layers[-1]["shape"] == [7]
    assert tell(f"{line} --image_size 12,8").out == tell(f"{line} --image-size=12,8").out


def test_describe_needs_no_data(tell: Tell, tmp_path: Path) -> None:
    told = tell("describe --dataset-train nowhere --dataset-test /nowhere --dataroot nowhere --nfilters 4")
    assert (told.code, told.err) == (0, "")
    assert not list(tmp_path.iterdir())


# --- options that a net does not read --------------------------------------------------------------------------------


@pytest.mark.parametrize("net", RESNETS)
def test_dropout_on_a_resnet_warns(net: str, tell: Tell) -> None:
    told = tell(f"describe --net-type {net} --nfilters 4 --dropout 0.5")
    assert told.code == 0
    assert re.fullmatch(in_order(f"warning --dropout {net}") + ".*\n", told.err)
    assert told.out == tell(f"describe --net-type {net} --nfilters 4").out


def test_dropout_is_read_by_the_others(tell: Tell) -> None:
    others = [net for net in NETS if "dropout" in options_read(net)]
    assert len(others) == 5
    for net in others:
        small = "--depth 1 --nweights 4" if net == "lbcnet" else "--nfilters 4"
        assert tell(f"describe --net-type {net} {small} --dropout 0.25").err == ""


def test_dropout_warns_once_in_a_training_run_even_when_quiet(tell: Tell) -> None:
    told = tell(f"train {ONE_EPOCH} --net-type resnet18 --dropout 0.5 --quiet --out run")
    assert told.code == 0
    assert re.fullmatch(in_order("warning --dropout resnet18") + ".*\n", told.err)
