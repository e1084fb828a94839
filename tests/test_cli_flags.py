"""Flags of the command line: complete, in both spellings, with help and defaults; nothing here imports torch."""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from torch import nn

import perturblab
from builders import Tell, Told
from perturblab import data
from perturblab.cli import config_file, main
from perturblab.cli.arguments import IGNORED, parse, select_fields
from perturblab.errors import UserError
from perturblab.layers import ACTIVATIONS
from perturblab.models import NETS, build, options_read
from perturblab.records import choices as names_of_choices
from perturblab.records.config import NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig, validated
from perturblab.runs.build import net_options
from told import in_order

COMMANDS = ("models", "describe", "train", "evaluate", "attack", "list", "show", "run", "export", "report")
# A value other than the default for every field, as it is typed.
TYPED = """
code=up net_type=cifarnet nfilters=6 nmasks=2 level=0.25 log=csv,tb scale_noise=2 first_masks=3 noise_type=normal
filter_size=3 first_filter_size=1 act=prelu pool_type=avg dropout=0.25 redraw_masks=always operator=shift nweights=8
depth=2 full=16 anchors=gaussian sparsity=0.25 padding=2 reading=A blocks=2 norm_order=bn-relu defence=batchout
batchout_at=all batchout_eta=U[0,0.2] batchout_k=3 batchout_partners=mutual batchout_rows=random
batchout_eta_per=image batchout_shared=both defence_eps=8/255 defence_steps=3 defence_mode=train
dataset_train=digits dataset_test=digits dataroot=elsewhere classes=1,0 train_size=40 val_size=20 batch_size=10
nepochs=3 manual_seed=7 optim_method=AdamW train_only=norms learning_rate=1e-4 optimizer_schedule=cosine
momentum=0.5 weight_decay=0 adam_beta1=0.5 adam_beta2=0.5 out=here resume=there nthreads=1 precision=bf16 compile=on
mask_memory=bf16 device=cpu
"""
GIVEN = dict(word.split("=") for word in TYPED.split())
SWITCHES = sorted(set(TrainConfig.model_fields) - set(GIVEN))


def config_of(line: str) -> TrainConfig:
    return validated(TrainConfig, select_fields(parse(main._parser(), shlex.split(line)), TrainConfig))


# --- the lists are complete ------------------------------------------------------------------------------------------


def choices(name: str) -> tuple[Any, ...]:
    """The values that a field admits."""
    kinds: list[Any] = [TrainConfig.model_fields[name].annotation]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return get_args(kind)
        kinds += get_args(kind)
    return ()


def test_every_choice_has_an_implementation() -> None:
    """Where the library keeps a table by name, it has the names that the command line offers."""
    assert set(choices("act")) == set(ACTIVATIONS)
    assert set(choices("code")) == set(PUBLISHED)
    for operator in choices("operator"):
        assert isinstance(build("noiseresnet18", nfilters=2, operator=operator), nn.Module)


def test_every_list_of_choices_is_named_once() -> None:
    """An option with choices takes them from `perturblab.records.choices`, where the library finds them too."""
    named = {value for value in vars(names_of_choices).values() if get_origin(value) is Literal}
    found = {name: choices(name) for name in TrainConfig.model_fields if choices(name)}
    assert len(found) == 24
    assert set(found.values()) <= {get_args(kind) for kind in named}
    assert all(len(set(values)) == len(values) for values in found.values())


def test_every_option_of_every_net_can_be_said() -> None:
    read = {field.name for net in NETS.values() for field in fields(net.options)}
    assert read - {"code"} == set(NET_OPTIONS)
    assert set(NET_OPTIONS) == set(NetConfig.model_fields) - {"code", "net_type"}


def test_every_field_is_tried_here() -> None:
    assert set(GIVEN) <= set(TrainConfig.model_fields)
    assert {type(TrainConfig.model_fields[name].default) for name in SWITCHES} <= {bool, type(None)}
    assert len(SWITCHES) > 8


# --- parsing ---------------------------------------------------------------------------------------------------------


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
        args = parse(main._parser(), shlex.split(f"{command} {text}"))
        if IGNORED[name].startswith("refused"):
            with pytest.raises(UserError, match=in_order(f"{dashed(name)} ; use --optimizer-schedule")):
                config_file.training_config(args)
        else:
            assert config_file.training_config(args).model_fields_set == set()


@pytest.mark.parametrize(
    ("alias", "name", "value"), [("--seed 3", "manual_seed", 3), ("--lr 0.5", "learning_rate", 0.5)]
)
def test_aliases(alias: str, name: str, value: float) -> None:
    assert config_of(f"train {alias}") == TrainConfig.model_validate({name: value})


def test_no_flag_can_be_shortened() -> None:
    parser = main._parser()
    for line in ("train --nepo 3", "train --nfilter 3", "train --learning 1", "evaluate run --aud", "models --js"):
        (flag,) = (word for word in line.split() if word.startswith("--"))
        with pytest.raises(UserError, match=in_order(f"option {flag} ;")):
            parse(parser, shlex.split(line))


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
    assert getattr(parse(main._parser(), shlex.split(line)), name) == value


@pytest.mark.parametrize("code", ["kl", "up", "or"])
def test_defaults_are_those_of_the_code(code: str) -> None:
    config = config_of(f"train --code {code}")
    assert config.net == ("noiseresnet18" if code == "or" else "resnet18")
    noise = config_of(f"train --code {code} --net-type noiseresnet18")
    assert net_options(noise, print)["level"] == (0.1 if code == "or" else 0.5)


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


@pytest.mark.parametrize("net", list(NETS))
def test_an_option_that_the_net_does_not_read_is_an_error(net: str, tell: Tell) -> None:
    unread = [name for name in NET_OPTIONS if name not in options_read(net) and name != "dropout"]
    assert unread
    for name in unread:
        for flag in [dashed(name), f"--no-{name}"] if name in SWITCHES else [f"{dashed(name)} {GIVEN[name]}"]:
            told = tell(f"describe --net-type {net} {flag}")
            assert (told.code, told.out) == (2, "")
            assert re.match(in_order(f"perturblab: error: {dashed(name)} {net} drop"), told.err), flag


# --- help ------------------------------------------------------------------------------------------------------------


def flags_of(command: str) -> list[argparse.Action]:
    (commands,) = (a for a in main._parser()._actions if isinstance(a, argparse._SubParsersAction))
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
    (commands,) = (a for a in main._parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(COMMANDS)


def test_version(tell: Tell) -> None:
    assert tell("--version") == Told(0, f"perturblab {perturblab.__version__}\n", "")


def test_help_and_mistakes_import_no_torch() -> None:
    lines = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    lines += ["train --nepoch 3", "train --nepochs 0", "bogus", "", "describe --image-size x", "evaluate"]
    script = f"""
import sys
from perturblab.cli.main import main
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
