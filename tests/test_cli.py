"""The command line as a user meets it: every command, both spellings, what goes where, folders kept, Ctrl-C."""

import argparse
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

import perturblab
from perturblab import checkpoint, cli, data, execution, logs, records
from perturblab.arguments import IGNORED, given, parsed
from perturblab.config import NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig, validated
from perturblab.configured import net_options
from perturblab.data import ImageData, Split
from perturblab.defences import DEFENCES
from perturblab.errors import UserError
from perturblab.kernels import debug_log
from perturblab.layers import ACTIVATIONS, PARTNERS
from perturblab.layers.batchout import ETA_PER, NOISE, ROWS, SHARED
from perturblab.layers.lbc import ANCHORS
from perturblab.layers.masks import KINDS, MEMORY, REDRAW
from perturblab.layers.perturb import FILTER_SIZES
from perturblab.layers.pooling import POOLS
from perturblab.models import NETS, options_read
from perturblab.models.bottleneck_resnet import READINGS
from perturblab.models.noise_resnet import OPERATORS
from perturblab.models.vgg import NORM_ORDERS
from perturblab.schedules import SCHEDULES
from perturblab.train import OPTIMIZERS, PRECISIONS

LENET = "--dataset-train digits --net-type lenet --nfilters 2 --train-size 20 --batch-size 10 --nthreads 1"
TINY = f"{LENET} --nepochs 1"
COMMANDS = ("models", "describe", "train", "evaluate", "attack", "list", "show", "run", "export", "report")
RESNETS = sorted(name for name in NETS if "resnet" in name)

# A value other than the default for every field, as it is typed.
GIVEN: dict[str, str] = {
    "code": "up",
    "net_type": "cifarnet",
    "nfilters": "6",
    "nmasks": "2",
    "level": "0.25",
    "log": "csv,tb",
    "scale_noise": "2",
    "first_masks": "3",
    "noise_type": "normal",
    "filter_size": "3",
    "first_filter_size": "1",
    "act": "prelu",
    "pool_type": "avg",
    "dropout": "0.25",
    "redraw_masks": "always",
    "operator": "shift",
    "nweights": "8",
    "depth": "2",
    "full": "16",
    "anchors": "gaussian",
    "sparsity": "0.25",
    "padding": "2",
    "reading": "A",
    "blocks": "2",
    "norm_order": "bn-relu",
    "defence": "batchout",
    "batchout_at": "all",
    "batchout_eta": "U[0,0.2]",
    "batchout_k": "3",
    "batchout_partners": "mutual",
    "batchout_rows": "random",
    "batchout_eta_per": "image",
    "batchout_shared": "both",
    "defence_eps": "8/255",
    "defence_steps": "3",
    "defence_mode": "train",
    "dataset_train": "digits",
    "dataset_test": "digits",
    "dataroot": "elsewhere",
    "classes": "1,0",
    "train_size": "40",
    "val_size": "20",
    "batch_size": "10",
    "nepochs": "3",
    "manual_seed": "7",
    "optim_method": "AdamW",
    "train_only": "norms",
    "learning_rate": "1e-4",
    "optimizer_schedule": "cosine",
    "momentum": "0.5",
    "weight_decay": "0",
    "adam_beta1": "0.5",
    "adam_beta2": "0.5",
    "out": "here",
    "resume": "there",
    "nthreads": "1",
    "precision": "bf16",
    "compile": "on",
    "mask_memory": "bf16",
    "device": "cpu",
}
SWITCHES = sorted(set(TrainConfig.model_fields) - set(GIVEN))


@dataclass(frozen=True)
class Told:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


Tell = Callable[[str], Told]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Run a command line in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Told:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as end:  # how argparse ends --help and --version
            code = int(end.code or 0)
        return Told(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, audited, with validation; nobody may change it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(shlex.split(f"train {TINY} --nepochs 2 --audit --val-size 10 --quiet --out {folder}")) == 0
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of the file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def config_of(line: str) -> TrainConfig:
    return validated(TrainConfig, given(parsed(cli._parser(), shlex.split(line)), TrainConfig))


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "perturblab", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


# --- the lists are complete ---------------------------------------------------------------------------------------


def choices(name: str) -> tuple[Any, ...]:
    """The values that a field admits."""
    kinds: list[Any] = [TrainConfig.model_fields[name].annotation]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return get_args(kind)
        kinds += get_args(kind)
    return ()


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("act", ACTIVATIONS),
        ("optimizer_schedule", SCHEDULES),
        ("optim_method", OPTIMIZERS),
        ("noise_type", KINDS),
        ("redraw_masks", REDRAW),
        ("anchors", (*ANCHORS, "dense")),
        ("filter_size", FILTER_SIZES),
        ("first_filter_size", FILTER_SIZES),
        ("pool_type", POOLS),
        ("log", logs.KINDS),
        ("code", PUBLISHED),
        ("precision", PRECISIONS),
        ("mask_memory", MEMORY),
        ("operator", OPERATORS),
        ("reading", READINGS),
        ("norm_order", NORM_ORDERS),
        ("defence", DEFENCES),
        ("batchout_partners", (*PARTNERS, NOISE)),
        ("batchout_rows", ROWS),
        ("batchout_eta_per", ETA_PER),
        ("batchout_shared", SHARED),
    ],
)
def test_every_choice_is_the_librarys_own(name: str, library: Any) -> None:
    assert len(choices(name)) == len(set(choices(name))) > 1
    assert set(choices(name)) == set(library)


def test_no_list_of_choices_is_left_out() -> None:
    checked = {
        "act",
        "optimizer_schedule",
        "optim_method",
        "noise_type",
        "redraw_masks",
        "anchors",
        "pool_type",
        "code",
        "precision",
        "mask_memory",
        "operator",
        "reading",
        "norm_order",
        "defence",
        "batchout_partners",
        "batchout_rows",
        "batchout_eta_per",
        "batchout_shared",
        "log",
    }
    assert {name for name in TrainConfig.model_fields if choices(name)} == checked | {
        "filter_size",
        "first_filter_size",
        "train_only",
        "compile",
        "defence_mode",
    }


def test_every_option_of_every_net_can_be_said() -> None:
    read = {field.name for net in NETS.values() for field in fields(net.options)}
    assert read - {"code"} == set(NET_OPTIONS)
    assert set(NET_OPTIONS) == set(NetConfig.model_fields) - {"code", "net_type"}


def test_every_field_is_tried_here() -> None:
    assert set(GIVEN) <= set(TrainConfig.model_fields)
    assert {type(TrainConfig.model_fields[name].default) for name in SWITCHES} <= {bool, type(None)}
    assert len(SWITCHES) > 8


# --- parsing ------------------------------------------------------------------------------------------------------


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("command", ["train", "describe"])
@pytest.mark.parametrize("name", sorted(GIVEN))
def test_both_spellings_of_every_value(name: str, command: str) -> None:
    value = GIVEN[name]
    spellings = [f"{flag}{sign}{value}" for flag in (dashed(name), f"--{name}") for sign in (" ", "=")]
    configs = [config_of(f"{command} {spelling}") for spelling in spellings]
    assert all(config == configs[0] for config in configs)
    assert configs[0].model_fields_set == {name}
    assert getattr(configs[0], name) != TrainConfig.model_fields[name].default


@pytest.mark.parametrize("command", ["train", "describe"])
@pytest.mark.parametrize("name", SWITCHES)
def test_both_spellings_of_every_switch(name: str, command: str) -> None:
    for flag in (dashed(name), f"--{name}"):
        for text, value in ((flag, True), (f"--no-{flag[2:]}", False)):
            config = config_of(f"{command} {text}")
            assert getattr(config, name) is value, text
            assert config.model_fields_set == {name}


@pytest.mark.parametrize("command", ["train", "describe"])
@pytest.mark.parametrize("name", sorted(IGNORED))
def test_published_flags_that_set_nothing_are_accepted_or_refused(name: str, command: str, tmp_path: Path) -> None:
    assert name not in TrainConfig.model_fields
    (tmp_path / "flags.yaml").write_text(f"{name}: '1'")
    flags = [f"{flag}{sign}1" for flag in (dashed(name), f"--{name}") for sign in (" ", "=")]
    for text in [*flags, f"--config {tmp_path}/flags.yaml"]:
        args = parsed(cli._parser(), shlex.split(f"{command} {text}"))
        if IGNORED[name].startswith("refused"):
            with pytest.raises(UserError, match=f"{dashed(name)} .*; use --optimizer-schedule"):
                cli._training(args)
        else:
            assert cli._training(args).model_fields_set == set()


@pytest.mark.parametrize(
    ("alias", "name", "value"), [("--seed 3", "manual_seed", 3), ("--lr 0.5", "learning_rate", 0.5)]
)
def test_aliases(alias: str, name: str, value: float) -> None:
    assert config_of(f"train {alias}") == TrainConfig.model_validate({name: value})


def test_no_flag_can_be_shortened() -> None:
    parser = cli._parser()
    for line in ("train --nepo 3", "train --nfilter 3", "train --learning 1", "evaluate run --aud", "models --js"):
        with pytest.raises(UserError, match="unknown option"):
            parsed(parser, shlex.split(line))


@pytest.mark.parametrize("text", ["-1", "-.5", "-0.25", "-1e-3", "-2.5E+1"])
def test_negative_number_is_a_value_not_a_flag(text: str) -> None:
    for line in (f"train --level {text}", f"train --level={text}"):
        assert config_of(line).level == float(text)


def test_the_last_one_counts() -> None:
    assert config_of("train --nfilters 3 --nfilters 5").nfilters == 5
    assert config_of("train --unique_masks --no-unique-masks").unique_masks is False


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("describe --image-size=8,6", "image_size", "8,6"),
        ("describe --image_size 8,6", "image_size", "8,6"),
        ("evaluate run --batch-size 5", "batch_size", "5"),
        ("evaluate run --batch_size=5", "batch_size", "5"),
    ],
)
def test_both_spellings_outside_the_training_flags(line: str, name: str, value: str) -> None:
    assert getattr(parsed(cli._parser(), shlex.split(line)), name) == value


@pytest.mark.parametrize("code", ["kl", "up", "or"])
def test_defaults_are_those_of_the_code(code: str) -> None:
    config = config_of(f"train --code {code}")
    assert config.net == ("noiseresnet18" if code == "or" else "resnet18")
    noise = config_of(f"train --code {code} --net-type noiseresnet18")
    assert net_options(noise, print)["level"] == (0.1 if code == "or" else 0.5)


# --- help ---------------------------------------------------------------------------------------------------------


def flags_of(command: str) -> list[argparse.Action]:
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[command]
    return found._actions


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_in_every_spelling(command: str, tell: Tell) -> None:
    told = tell(f"{command} --help")
    assert (told.code, told.err) == (0, "")
    for action in flags_of(command):
        for flag in action.option_strings or [str(action.metavar)]:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told.out), flag
        assert action.help, action.dest


def test_help_of_train_names_choices_and_defaults(tell: Tell) -> None:
    text = " ".join(tell("train --help").out.split())
    for name, info in TrainConfig.model_fields.items():
        if choices(name):
            assert "(" + ", ".join(map(str, choices(name))) + ")" in text, name
        if info.default not in (None, False):
            assert f"[{info.default}]" in text, name


def test_help_names_every_command(tell: Tell) -> None:
    told = tell("--help")
    assert (told.code, told.err) == (0, "")
    assert all(re.search(rf"^ +{command} +\w", told.out, re.M) for command in COMMANDS)
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(COMMANDS)


def test_version(tell: Tell) -> None:
    assert tell("--version") == Told(0, f"perturblab {perturblab.__version__}\n", "")


def test_help_and_mistakes_import_no_torch() -> None:
    lines = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    lines += ["train --nepoch 3", "train --nepochs 0", "bogus", "", "describe --image-size x", "evaluate"]
    script = f"""
import sys
from perturblab.cli import main
for line in {lines!r}:
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code
    heavy = sorted({{"torch", "numpy", "rich", "matplotlib", "datasets", "scipy"}} & set(sys.modules))
    assert not heavy, (line, heavy)
    assert code in (0, 2), (line, code)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


def test_command_and_module_are_one_program() -> None:
    script = Path(sys.executable).with_name("perturblab")
    one = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=300, check=False)
    two = process("--help")
    assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)
    assert one.returncode == 0
    assert process("train", "--nepoch", "1").returncode == 2


# --- models -------------------------------------------------------------------------------------------------------


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


# --- describe -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("--net-type resnet18 --nfilters 44", 32),
        ("--net-type noiseresnet18 --nfilters 128 --first_filter_size 7", 32),
        ("--net-type noiseresnet18 --nfilters 128 --first_filter_size 3", 10),
        ("--net-type perturb_resnet18 --nfilters 128 --first_filter_size 3 --filter_size 1", 10),
        ("--net-type perturb_resnet18 --nfilters 128 --first_filter_size 0", 8),
        ("--net-type perturb_resnet18 --nfilters 256 --first_filter_size 0 --code up", 8),
    ],
)
def test_receptive_field_of_the_published_nets(line: str, field: int, tell: Tell) -> None:
    assert json.loads(tell(f"describe {line} --json").out)["receptive_field"] == field
    assert tell(f"describe {line}").out.endswith(f"receptive field {field} pixels\n")


def test_describe_says_the_same_with_and_without_json(tell: Tell) -> None:
    line = "describe --net-type lenet --nfilters 4 --train_masks --image-size 28 --channels 1 --nclasses 7"
    described, text = json.loads(tell(f"{line} --json").out), tell(line).out
    rows = text.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == [layer["name"] for layer in described["layers"]]
    for key, word in (("trainable", "trainable"), ("masks", "mask values"), ("macs", "MACs")):
        assert f"{described[key]:,} {word}" in text


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


NET_FIELDS = {"code", "net_type", *NET_OPTIONS}


@pytest.mark.parametrize("name", sorted(set(TrainConfig.model_fields) - NET_FIELDS))
def test_describe_accepts_what_only_training_reads(name: str, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("describe needs no data")

    monkeypatch.setattr(data, "load", never)
    bare = tell("describe --nfilters 4")
    flags = [dashed(name)] if name in SWITCHES else [f"{dashed(name)} {GIVEN[name]}"]
    for flag in [*flags, f"--no-{name}"] if name in SWITCHES else flags:
        assert tell(f"describe --nfilters 4 {flag}") == bare, flag


def test_describe_needs_no_data(tell: Tell, tmp_path: Path) -> None:
    told = tell("describe --dataset-train nowhere --dataset-test /nowhere --dataroot nowhere --nfilters 4")
    assert (told.code, told.err) == (0, "")
    assert not list(tmp_path.iterdir())


# --- options that a net does not read -----------------------------------------------------------------------------


@pytest.mark.parametrize("net", list(NETS))
def test_an_option_that_the_net_does_not_read_is_an_error(net: str, tell: Tell) -> None:
    unread = [name for name in NET_OPTIONS if name not in options_read(net) and name != "dropout"]
    assert unread
    for name in unread:
        for flag in [dashed(name), f"--no-{name}"] if name in SWITCHES else [f"{dashed(name)} {GIVEN[name]}"]:
            told = tell(f"describe --net-type {net} {flag}")
            assert (told.code, told.out) == (2, "")
            assert told.err.startswith(f"perturblab: error: {dashed(name)} given, but {net} does not read it;"), flag


@pytest.mark.parametrize("net", RESNETS)
def test_dropout_on_a_resnet_warns(net: str, tell: Tell) -> None:
    told = tell(f"describe --net-type {net} --nfilters 4 --dropout 0.5")
    assert told.code == 0
    assert told.err == f"warning: --dropout is not read by {net}, as in the published codes\n"
    assert told.out == tell(f"describe --net-type {net} --nfilters 4").out


def test_dropout_is_read_by_the_others(tell: Tell) -> None:
    others = [net for net in NETS if "dropout" in options_read(net)]
    assert len(others) == 5
    for net in others:
        small = "--depth 1 --nweights 4" if net == "lbcnet" else "--nfilters 4"
        assert tell(f"describe --net-type {net} {small} --dropout 0.25").err == ""


def test_dropout_warns_once_in_a_training_run_even_when_quiet(tell: Tell) -> None:
    told = tell(f"train {TINY} --net-type resnet18 --dropout 0.5 --quiet --out run")
    assert told.code == 0
    assert told.err == "warning: --dropout is not read by resnet18, as in the published codes\n"


# --- train --------------------------------------------------------------------------------------------------------


def test_train_tells_progress_on_stderr_and_the_result_on_stdout(tell: Tell) -> None:
    told = tell(f"train {LENET} --nepochs 2 --out run")
    last = records.load(Path("run/record.json")).counts.last
    assert told.code == 0
    assert told.out.splitlines()[0].startswith(
        f"test accuracy after epoch 2: {last.accuracy:.2f} % ({last.correct}/{last.total}, 95 % Wilson interval ["
    )
    assert told.out.splitlines()[1:] == ["record: run/record.json, curves: run/progress.svg"]
    said = told.err.splitlines()
    assert said[0] == "data: digits, 20 training, 0 validation, 597 test images"
    assert said[1] == "classes in order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert re.fullmatch(r"net: lenet, 1,958 trainable parameters, on cpu", said[2])
    assert said[3] == "run: run"
    assert said[4] == f"its last bits depend on: fp32, not compiled, {torch.get_num_threads()} thread, cpu"
    assert [line.split()[1] for line in said[5:]] == ["1/2", "2/2"]


def test_audited_run_tells_the_published_metrics(tell: Tell) -> None:
    told = tell(f"train {TINY} --audit --out run")
    audit = records.load(Path("run/record.json")).audit
    assert audit is not None
    metrics = told.out.splitlines()[1]
    for value in (audit.last.batch_mean, audit.last.batch_mean_truncated, audit.last.smoothed):
        assert f"{value:.2f} %" in metrics


def test_quiet_leaves_the_result_alone(tell: Tell) -> None:
    loud, quiet = (tell(f"train {TINY} --out {out} {flag}") for out, flag in (("one", ""), ("two", "--quiet")))
    assert quiet.err == ""
    assert quiet.out == loud.out.replace("one/", "two/")


def test_nothing_off_a_terminal_but_plain_lines(tell: Tell) -> None:
    for line in (f"train {TINY} --audit --val-size 10 --out run", "evaluate run --audit", "report run", "models"):
        told = tell(line)
        assert told.code == 0
        odd = {char for char in told.out + told.err if not char.isprintable() and char != "\n"}
        assert not odd, line


def test_default_folder_names_net_and_seed(tell: Tell, tmp_path: Path) -> None:
    told = tell(f"train {TINY} --seed 5")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"lenet-seed5-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert f"run: runs/{folder.name}\n" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_out_makes_the_folders_above_it_and_takes_an_empty_one(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in ("a/b/c", "empty", "./d/", str(tmp_path / "absolute"), "ünïcödé and spaces", ":cat:"):
        assert tell(f"train {TINY} --quiet --out {shlex.quote(out)}").code == 0
        assert records.load(tmp_path / out / "record.json").status == "finished"


def test_save_and_logs_are_accepted_and_point_into_the_run(tell: Tell, tmp_path: Path) -> None:
    assert tell(f"train {TINY} --quiet --save saved --logs {tmp_path}/logged --out run").code == 0
    assert tell(f"train {TINY} --quiet --out plain").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "run"]
    assert content(tmp_path / "run").keys() == content(tmp_path / "plain").keys()


@pytest.mark.parametrize("options", ["", "--nepochs 3", "--dataset-train nowhere", "--seed 9"])
def test_a_run_is_never_overwritten(options: str, run: Path, tell: Tell) -> None:
    before = content(run)
    told = tell(f"train {TINY} {options} --out {run}")
    assert (told.code, told.out) == (2, "")
    assert "never overwritten" in told.err
    assert f"--resume {run}" in told.err
    assert content(run) == before


def test_names_are_printed_as_they_are(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that looks like markup or an emoji is turned into something else."""
    fake_data(monkeypatch, channels=1, classes=("[red]x[/red]", ":cat:"))
    told = tell(f"train {TINY} --train-size 12 --batch-size 6 --out :smile:")
    assert told.code == 0
    assert "classes in order: [red]x[/red], :cat:\n" in told.err
    assert "run: :smile:\n" in told.err


def fake_data(
    monkeypatch: pytest.MonkeyPatch, *, channels: int, classes: tuple[str, ...] = tuple("0123456789"), size: int = 8
) -> None:
    """Random images in place of a data set."""

    def split(count: int) -> Split:
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
        return Split(pixels, torch.arange(count) % len(classes))

    made_up = ImageData("", "made up", classes, split(40), split(20), {"train": "a", "test": "b"})
    monkeypatch.setattr(data, "load", lambda *_, **__: made_up)


# --- debug --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """The log that --debug opens, closed again."""
    yield
    for handler in [*debug_log.handlers]:
        debug_log.removeHandler(handler)
    debug_log.setLevel("NOTSET")


SHOWN = re.compile(r"^(input|mask|output) \(([\d, ]+)\) \[(\d+), (\d+)\] \[(-?[\d.e-]+), (-?[\d.e-]+)\]$", re.M)


@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("nmasks", [1, 2])
@pytest.mark.parametrize("unique", ["--unique_masks", "--no-unique_masks"])
def test_debug_prints_input_mask_and_output(
    nmasks: int, channels: int, unique: str, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_data(monkeypatch, channels=channels)
    told = tell(f"train {TINY} --nfilters 6 --nmasks {nmasks} {unique} --debug --quiet --out run")
    assert told.code == 0
    assert len(told.out.splitlines()) == 2
    shown = SHOWN.findall(told.err)
    assert len(shown) == len(told.err.splitlines())
    # The first layer has no activation, so that its output is the sum of the two others.
    size, sets = (10, channels, 8, 8), channels if unique == "--unique_masks" else 1
    shapes = {"input": size, "mask": (sets, nmasks, 8, 8), "output": (10, channels * nmasks, 8, 8)}
    values: dict[tuple[str, int, int], list[float]] = {}
    for name, shape, i, j, *pair in shown:
        if tuple(map(int, shape.split(","))) == shapes[name] and (name, int(i), int(j)) not in values:
            values[name, int(i), int(j)] = [float(value) for value in pair]
    sums = 0
    for (name, image, map_), got in values.items():
        channel, mask = divmod(map_, nmasks)
        if name == "output" and channel < 2:
            added = values["mask", channel if sets > 1 else 0, mask]
            want = [x + m for x, m in zip(values["input", image, channel], added, strict=True)]
            assert got == pytest.approx(want, abs=3e-5)
            sums += 1
    maps = {0, 1, nmasks} & set(range(channels * nmasks))  # two masks of a channel, one of the next
    assert sums == 2 * len(maps)


@pytest.mark.usefixtures("quiet_log")
def test_debug_changes_nothing(tell: Tell, tmp_path: Path) -> None:
    for flags in ("--out plain", "--debug --out debug"):
        assert tell(f"train {TINY} --quiet {flags}").code == 0
    plain, debug = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "debug"))
    assert plain == debug


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_evaluate_as_json_has_the_keys_of_the_contract(run: Path, tell: Tell) -> None:
    before = content(run)
    told = tell(f"evaluate {run} --json")
    assert (told.code, told.err) == (0, "")
    plain = json.loads(told.out)
    assert list(plain) == ["exact", "wilson"]
    audited = json.loads(tell(f"evaluate {run} --audit --json").out)
    assert list(audited) == ["exact", "wilson", "batch_mean", "batch_mean_truncated", "smoothed", "n_batches"]
    last = records.load(run / "record.json").counts.last
    assert plain["exact"] == audited["exact"] == {"correct": last.correct, "total": last.total}
    low, high = plain["wilson"]
    assert 0 <= low < 100 * last.correct / last.total < high <= 100
    assert content(run) == before


def test_evaluate_finds_what_the_run_recorded(run: Path, tell: Tell) -> None:
    audited = json.loads(tell(f"evaluate {run} --audit --json").out)
    record = records.load(run / "record.json")
    assert record.audit is not None
    for name in ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches"):
        assert audited[name] == pytest.approx(getattr(record.audit.last, name))


def test_evaluate_with_another_batch(run: Path, tell: Tell) -> None:
    for size, batches in ((1, 597), (100, 6), (597, 1), (5000, 1)):
        found = json.loads(tell(f"evaluate {run} --audit --batch-size {size} --json").out)
        assert found["n_batches"] == batches
        whole = 100 * found["exact"]["correct"] / 597
        assert found["batch_mean"] == pytest.approx(whole * 597 / (size * batches))
        assert found["batch_mean_truncated"] <= found["batch_mean"]


def test_evaluate_in_words(run: Path, tell: Tell) -> None:
    found = json.loads(tell(f"evaluate {run} --audit --json").out)
    told = tell(f"evaluate {run} --audit")
    assert told.code == 0
    lines = told.out.splitlines()
    assert len(lines) == 4
    exact = found["exact"]
    assert lines[0].startswith(f"exact: {100 * exact['correct'] / exact['total']:.2f} % ({exact['correct']}/597), 95 %")
    for line, name in zip(lines[1:], ("batch_mean", "batch_mean_truncated", "smoothed"), strict=True):
        assert f"{found[name]:.2f} %" in line
    assert tell(f"evaluate {run}").out == lines[0] + "\n"


# --- report -------------------------------------------------------------------------------------------------------


def test_report(run: Path, tell: Tell) -> None:
    before = content(run)
    last = records.load(run / "record.json").counts.last
    for flags in ("--groups", "--groups --markdown"):
        told = tell(f"report {run.parent} {flags}")
        assert (told.code, told.err) == (0, "")
        assert f"{last.accuracy:.2f}" in told.out
    assert content(run) == before


def test_report_compares_with_a_control(tell: Tell) -> None:
    for seed in (1, 2):
        for level in (0, 1):
            out = f"results/level{level}-seed{seed}"
            assert tell(f"train {TINY} --quiet --level {level} --seed {seed} --out {out}").code == 0
    labels = re.findall(r"^\| (lenet[^|]*?) \|", tell("report --groups --markdown").out, re.M)
    assert len(labels) == 2
    for control in labels:
        told = tell(f"report --groups --control {shlex.quote(control)} --markdown")
        assert (told.code, told.err) == (0, "")
        rows = [line for line in told.out.splitlines() if line.startswith("| lenet")]
        assert rows[0].startswith(f"| {control}")


def test_report_without_records_says_so(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for flags in ("--groups", "--markdown"):
        told = tell(f"report {flags}")
        assert (told.code, told.out.strip(), told.err) == (0, "There are no records yet.", "")
    told = tell("report")
    assert (told.code, told.err) == (0, "")
    assert told.out.endswith("0 records; open report.html in a browser\n")
    assert "There are no records yet" in (tmp_path / "report.html").read_text()


def test_report_into_a_file_twice(run: Path, tell: Tell, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    told = tell(f"report {run} --groups --into README.md")
    assert (told.code, told.err) == (0, "")
    once = page.read_text()
    assert once.startswith("before\n<!-- results:begin -->\n")
    assert once.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in once
    assert "lenet, 2 filters" in once
    tell(f"report {run} --groups --into README.md")
    assert page.read_text() == once


# --- resume -------------------------------------------------------------------------------------------------------


def test_resumed_run_is_the_straight_one(tell: Tell, tmp_path: Path) -> None:
    assert tell(f"train {LENET} --nepochs 3 --quiet --out straight").code == 0
    assert tell(f"train {LENET} --nepochs 1 --quiet --out longer").code == 0
    told = tell("train --resume longer --nepochs 3")
    assert told.code == 0
    assert "test accuracy after epoch 3" in told.out
    assert [line.split()[1] for line in told.err.splitlines() if line.startswith("epoch")] == ["2/3", "3/3"]
    one, two = (tmp_path / name for name in ("straight", "longer"))
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()
    records_ = [records.load(folder / "record.json").model_dump(exclude={"seconds"}) for folder in (one, two)]
    straight, longer = (record.pop("parts") for record in records_)
    assert records_[0] == records_[1]
    assert straight == []
    assert [(part["epoch"], part["nepochs"]) for part in longer] == [(0, 1), (1, 3)], "that it was made longer is told"


def test_what_was_given_before_may_be_said_again(tell: Tell) -> None:
    assert tell(f"train {TINY} --quiet --out run").code == 0
    assert tell(f"train {TINY} --quiet --resume run").code == 0
    assert tell(f"train {LENET} --nepochs 2 --quiet --resume run").code == 0


def test_what_a_schedule_depends_on_may_be_said_again_too(tell: Tell) -> None:
    assert tell(f"train {TINY} --optimizer-schedule cosine --quiet --out run").code == 0
    told = tell("train --resume run --nepochs 2")
    assert told.code == 2
    assert "--nepochs cannot change: the cosine schedule" in told.err
    assert tell("train --resume run --nepochs 1 --quiet").code == 0


@pytest.mark.parametrize(
    "flags",
    ["--lr 1", "--seed 2", "--net-type resnet18", "--batch-size 5", "--audit", "--val-size 5", "--classes 1,2"],
)
def test_resume_changes_no_setting(flags: str, run: Path, tell: Tell) -> None:
    before = content(run)
    other = flags.replace("--audit", "--no-audit")
    told = tell(f"train --resume {run} {other}")
    assert (told.code, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1
    assert "start a new run" in told.err
    assert content(run) == before


def test_fewer_epochs_than_done_are_refused(run: Path, tell: Tell) -> None:
    before = content(run)
    told = tell(f"train --resume {run} --nepochs 1")
    assert (told.code, told.out) == (2, "")
    assert "--nepochs got 1, and epoch 2 has begun" in told.err
    assert content(run) == before


def test_run_moved_elsewhere_is_resumed_from_elsewhere(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tell(f"train {TINY} --quiet --out run").code == 0
    (tmp_path / "below").mkdir()
    (tmp_path / "run").rename(tmp_path / "below/moved")
    monkeypatch.chdir(tmp_path / "below")
    assert tell("train --resume moved --nepochs 2 --quiet").code == 0
    assert tell("evaluate moved").code == 0


# --- ends ---------------------------------------------------------------------------------------------------------


def wait_for(path: Path, text: str, program: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Until the file holds the text; never longer than that."""
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert program.poll() is None, path.read_text()
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_run_goes_on_where_it_stopped(number: signal.Signals, tell: Tell, tmp_path: Path) -> None:
    flags = "--dataset-train digits --net-type lenet --nfilters 2 --batch-size 10 --nthreads 1"
    command = [sys.executable, "-m", "perturblab", *shlex.split(f"train {flags} --nepochs 1000000 --out run")]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        program = subprocess.Popen(command, stdout=out, stderr=err, cwd=tmp_path, start_new_session=True)
        try:
            wait_for(tmp_path / "err", "epoch 2/", program)
            program.send_signal(number)
            assert program.wait(120) == 130
        finally:
            program.kill()
            program.wait()
    assert (tmp_path / "out").read_bytes() == b""
    last = (tmp_path / "err").read_text().splitlines()[-1]
    found = re.fullmatch(
        r"stopped in epoch (\d+) after step (\d+) of 120; go on with: perturblab train --resume run", last
    )
    assert found, last
    epoch, step = map(int, found.groups())
    state = checkpoint.load_checkpoint(tmp_path / "run/checkpoint.pt")["state"]
    assert (state["epoch"] + 1, state["step"]) == (epoch, step)
    assert "record.json" not in content(tmp_path / "run")
    assert tell(f"train --resume run --nepochs {epoch} --quiet").code == 0
    assert tell(f"train {flags} --nepochs {epoch} --quiet --out straight").code == 0
    one, two = (tmp_path / name / "weights.safetensors" for name in ("run", "straight"))
    assert one.read_bytes() == two.read_bytes()


def test_second_interrupt_does_not_wait(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(run: Any, show: Any, stop: Callable[[], bool]) -> None:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on after the second interrupt")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(execution, "execute", execute)
    told = tell(f"train {TINY} --quiet --out run")
    assert (told.code, told.out, told.err) == (130, "", "perturblab: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_that_is_given_leaves_the_signals_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    asked = list[bool]()

    def stop() -> bool:
        assert all(signal.getsignal(number) == handler for number, handler in handlers)
        asked.append(len(asked) == 2)
        return asked[-1]

    line = f"train {LENET} --nepochs 9 --quiet --out {tmp_path / 'run'}"
    assert cli.main(shlex.split(line), stop=stop) == cli.INTERRUPTED
    assert asked == [False, False, True]
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().err
    study = f"run K4 --seeds 1 --results {tmp_path}/r --work {tmp_path}/w"
    assert cli.main(shlex.split(study), stop=lambda: True) == cli.INTERRUPTED
    assert not list(tmp_path.glob("r/**/*.json"))


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and the traceback are what the interpreter makes of it."""

    def broken(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_models", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


@pytest.mark.parametrize("command", ["models", "models --json", "report", "--help"])
@pytest.mark.parametrize("buffered", [True, False])
def test_reader_that_goes_away_is_no_error(command: str, buffered: bool, run: Path, tmp_path: Path) -> None:
    """What `| head` does: the other end of the pipe is closed before the first line comes."""
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    argv = shlex.split(command) + ([str(run)] if command == "report" else [])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "perturblab", *argv],
            stdout=write,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment | ({} if buffered else {"PYTHONUNBUFFERED": "1"}),
            timeout=300,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT TESTED WITH A FULL DISK: no /dev/full here")
@pytest.mark.parametrize("command", ["models", "report"])
def test_output_that_cannot_be_written_is_told_in_one_line(command: str, run: Path, tmp_path: Path) -> None:
    argv = [command, str(run)] if command == "report" else [command]
    with Path("/dev/full").open("wb") as full:
        command_line = [sys.executable, "-m", "perturblab", *argv]
        done = subprocess.run(command_line, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode not in (0, 120)
    assert re.fullmatch(rb"perturblab: error: [^\n]*No space left on device[^\n]*\n", done.stderr), done.stderr


def test_terminal_that_knows_ascii_only(tell: Tell, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process("train", *shlex.split(TINY), "--out", "é", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test accuracy after epoch 1")
    assert process("report", "é", cwd=tmp_path, env=environment).returncode == 0
