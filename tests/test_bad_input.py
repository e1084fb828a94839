"""The user's mistakes: one line that says what is wrong and what to do, exit code 2, no traceback, nothing written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from good_files import SMALL, TINY
from oracle import judge, run
from perturblab import data
from perturblab.models import NETS, options_read
from perturblab.records.attack_config import AttackConfig
from perturblab.records.config import NET_OPTIONS, TrainConfig
from strategies import garbled, search
from told import in_order

# One mistake a line: the command line => what its error tells, in order. Words in capitals stand for what is below.
WORDS = {
    "TINY": TINY,
    "SMALL": f"{SMALL} --out new",
    "LENET": "--dataset-train digits --net-type lenet --nfilters 2 --nthreads 1 --quiet",
    "PERTURB": "--dataset-train digits --net-type perturb_resnet18 --nfilters 4 --quiet",
    "COLOUR": "--net-type perturb_resnet18 --nfilters 4 --first_filter_size 0",
    "LONG": "x" * 300,
    "DEEP": "x/" * 3000 + "y",
}

TABLE = """
# words that no command knows, and missing values
train --nepoch 5 => unknown option --nepoch did you mean --nepochs
train --nfilter=4 => unknown option --nfilter did you mean --nfilters
train --batchsize 4 => unknown option --batchsize did you mean --batch
train --learning-rat 1 => unknown option --learning-rat did you mean --learning-rate
train --first-filtersize 3 => --first-filtersize did you mean --first
train --unique-mask => --unique-mask did you mean --unique
train --no-nepochs => unknown option --no-nepochs did you mean --nepochs
train --Nepochs 5 => unknown option --Nepochs did you mean --nepochs
describe --image-sise 3 => unknown option --image-sise did you mean --image
evaluate run --jso => unknown option --jso did you mean --json
models --jsn => unknown option --jsn did you mean --json
report --controll x => unknown option --controll did you mean --control
train --zzzzzzzzzz => unknown option --zzzzzzzzzz perturblab train --help
train --ünïcödé 1 => unknown option --ünïcödé
train -z => unknown option -z
--verbose => unknown option --verbose
evaluate run --nepochs 3 => unknown option --nepochs
report --audit => unknown option --audit
 => command perturblab --help
bogus => choice 'bogus'
TRAIN => choice 'TRAIN'
'' => choice ''
train train => 'train' perturblab train --help
train models => 'models' option
models extra => 'extra' perturblab models --help
evaluate run run => 'run' option
evaluate => required RUN
train --nepochs => --nepochs expected argument
report --control => --control expected argument
train --audit=yes => --audit 'yes'
train --no-unique_masks=1 => --unique '1'
models --json=1 => --json '1'
- => choice '-'
-- => unknown option --
models -- => unknown option --
attack => required RUN
show => required ID
run --seeds => --seeds expected argument
report a b => 'b' option
train @file => '@file' option
export run => --onnx FILE --pretrained DIR
export run --push user/net => --pretrained DIR
export run --onnx net.onnx --push user/net => --push --pretrained DIR
report run --attacks --groups => --attacks --groups choose
report run --control bogus => --control bogus perturblab report --help
report run --into run => --into run perturblab report --help
report run --tag pnn => --tag pnn perturblab report --help
report run --markdown -o page.html => --output page.html perturblab report --help
run K4 --cpus 2 --quiet => --cpus --on drop
run K4 --seed 1 --seeds 2 --quiet => --seed
# values of flags
train --learning-rate-decay 0.1 => --learning-rate-decay published codes
describe --learning_rate_decay 0.1 => --learning-rate-decay
describe --image-size 0 => --image-size '0' least 1
describe --image-size 8,8,8 => --image-size '8,8,8' N,N
describe --image-size 3.5 => --image-size '3.5'
describe --image_size '' => --image-size ''
describe --channels -3 => --channels '-3' least 1
describe --nclasses 1e3 => --nclasses '1e3'
describe --nclasses ² => --nclasses '²'
evaluate run --batch-size 0 => --batch-size '0' least 1
evaluate run --batch_size 3.5 => --batch-size '3.5'
train --nepochs= => --nepochs '' integer
describe --net-type bottleneck_resnet --blocks 2147483647 => --blocks '2147483647' 1000
attack run --eps 8/0 => --eps '8/0' 8/255
attack run --eps x => --eps 'x' least 0 8/255
attack run --eps 0.1, => --eps '' 8/255
attack run --eps=-0.1 => --eps '-0.1' 8/255
attack run --eps nan => --eps 'nan' 8/255
attack run --eps inf => --eps 'inf' 8/255
attack run --iterations 0,1 => --iterations least 1
attack mixed --inference-batchout 0 => --inference-batchout '0' 1
attack run --attacks '' => --attacks '' choose fgsm
attack run --attacks bogus => --attacks 'bogus' choose fgsm pgd transfer-NAME
attack run --attacks fgsm, => --attacks '' choose fgsm
attack run --attacks 'fgsm frozen' => --attacks 'fgsm frozen' choose fgsm
attack run --attacks transfer- => --attacks 'transfer-' choose fgsm
attack run --attacks transfer-bogus --source mixed => --attacks 'transfer-bogus'
run K4 --seeds 0 => --seeds '0' least 1
run K4 --jobs 0 => --jobs '0' least 1
run --preset bogus => --preset 'bogus' choose quick
run K4 --on bogus --quiet => --on 'bogus' expected ray
run K4 --on ray --gpus 1.5 --quiet => --gpus '1.5' expected
run K4 --on ray --gpus many --quiet => --gpus 'many' expected
run K4 --on ray --cpus 0 --quiet => --cpus '0' least 1
list --tag bogus => 'bogus' choose among attack
list --tag pnn,bogus => 'bogus' choose among attack
list --tag '' => --tag ''
report run --markdown --tag bogus => 'bogus' choose among attack
show K5555 => 'K5555' perturblab list
show K44 => 'K44' did you mean K4
show r-NOISE => 'r-NOISE' did you mean R-noise
show '' => '' perturblab list
run K5555 => 'K5555' perturblab list
run P1 --preset quick --dry-run --quiet => P1 perturblab show P1
run H1 --preset quick --dry-run --quiet => H1 perturblab show H1
# flags that do not go together
train --net-type resnet => net 'resnet' did you mean
train --net-type Resnet18 => net 'Resnet18' did you mean resnet18
train --net-type 'résnet18 ' => net 'résnet18 ' did you mean resnet18
describe --net-type ../resnet18 => net
train --net-type noiseresnet18 --nmasks 2 --mix_maps => --nmasks --mix-maps noiseresnet18
train --dataset-train digits --net-type noiseresnet18 --first_filter_size 5 => first_filter_size 5 3 7
describe --net-type noiseresnet18 --first_filter_size 1 => first_filter_size 1 3 7
describe --net-type noiseresnet18 --first_filter_size 5 => first_filter_size 5 3 7
describe COLOUR --nmasks 2 => nmasks 2 4 filters 3 channels multiple of 3 nmasks 1
train COLOUR --nmasks 2 --dataset-train pictures --quiet => 4 filters multiple 3 channels
describe --code up --net-type noiseresnet50 --first_filter_size 5 => first_filter_size 5
train PERTURB --train_masks --redraw_masks train => trained redrawn drop one
describe --net-type lenet --train_masks --redraw-masks always => trained redrawn drop one
describe --net-type noiseresnet18 --operator shift --level 0.1 => shift masks level 0.1 drop
train --net-type noiseresnet18 --operator anchors --untied_bias => anchors masks untied_bias True
describe --net-type perturb_resnet18 --first-masks 5 --first_filter_size 3 => first layer of 3x3 drop
describe --net-type perturb_resnet18 --first-sigmoid --use_act => first_sigmoid use_act drop
describe --net-type lbcnet --image-size 4 => needs least 5x5
train LENET --batch-size 1 => --batch-size 1 batch 1 1200
train LENET --train-size 21 --batch-size 10 => --batch-size 10 batch 1 21 batch size
train LENET --code or --batch-size 5000 => --batch-size 5000 1200 use at most 1200
train --device bogus => --device 'bogus' use cpu
train --device '' => --device ''
train --device cpu:x => --device 'cpu:x'
train --device mps:0 => --device 'mps:0'
train --resume run --out new => --resume drop --out
describe COLOUR --train_masks --mask-memory bf16 => mask_memory 'bf16' drop
describe COLOUR --mask-memory seed --redraw_masks always => drop mask_memory seed redraw_masks
describe --net-type bottleneck_resnet --reading A --nfilters 3 => nfilters 3 multiple of 4 reading B
describe --net-type batchout_mnist --image-size 4 --padding 0 => least 14x14 use padding 2
train TINY --batch-size 1 --out new => --batch-size 1 batch 1 20
train TINY --batch-size 5000 --code or --out new => --batch-size 5000 20 use at most 20
train TINY --batchout-eta 0.1 --out new => --batchout-eta --defence
train TINY --no-batchout-detach --out new => --batchout-detach --defence
train TINY --defence batchout --defence-mode train --out new => --defence-mode --defence batchout
train TINY --defence fgsm-half --defence-steps 3 --out new => --defence-steps --defence fgsm-half
train TINY --defence fgsm-half --batchout-at all --out new => --batchout-at --defence fgsm-half
train TINY --defence pgd --batchout-partners mutual --out new => --batchout-partners --defence pgd
train TINY --defence pgd --batchout-rows random --batchout-shared eta --out new => --batchout-rows --batchout-shared
train TINY --defence-eps 0.1 --out new => --defence-eps --defence
train TINY --defence fgsm --batchout-k 3 --out new => --batchout-k --defence fgsm
train TINY --defence fgsm --defence-steps 3 --out new => --defence-steps --defence fgsm
train TINY --defence batchout --defence-eps 0.1 --out new => --defence-eps --defence batchout
train TINY --defence batchout --batchout-at nowhere --out new => --batchout: 'nowhere' 0.0
train TINY --defence batchout --batchout-at all-after:nowhere --out new => --batchout 'all-after:nowhere'
train TINY --defence batchout --batchout-at '' --out new => --batchout-at ''
train TINY --defence batchout --batchout-at 0,nowhere --out new => --batchout 'nowhere'
train TINY --defence batchout --batchout-eta much --out new => --batchout eta 'much'
train TINY --defence batchout --batchout-eta '1;2;3;4;5;6;7' --out new => --batchout eta 7 magnitudes 4 places
train TINY --defence batchout --batchout-eta U[1,0] --out new => --batchout eta uniform (1.0, 0.0)
train TINY --defence batchout --batchout-eta 0.3:0.6 --out new => --batchout eta probabilities (0.6,)
train TINY --defence batchout --batchout-eta nan --out new => --batchout eta values (nan,)
train TINY --defence batchout --batchout-eta 0.1,0.2 --out new => --batchout eta '0.1,0.2' expected
train TINY --defence batchout --batchout-k 1.5 --out new => --batchout-k '1.5' expected count
train TINY --defence batchout --batchout-k -1 --out new => --batchout-k '-1'
train TINY --defence batchout --batchout-partners no-self --batch-size 1 --out new => --batch-size 1 batch
train TINY --defence fgsm-half --defence-mode train --batch-size 2 --out new => --batch-size 2 batch 2
train TINY --defence pgd --defence-eps 8/0 --out new => --defence-eps '8/0' expected
train LENET --train-size 20 --val-size 19 --batch-size 10 => --batch-size 10 batch 1
train --dataset-train digits --net-type batchout_mnist --train-only norms --quiet => --train-only norms drop
attack run --attacks transfer-fgsm => --attacks 'transfer-fgsm' --source run
attack run --attacks transfer-fgsm --source colour --eps 0.1 --no-checks --quiet => --source colour choose
attack run --attacks transfer-fgsm --source run --eps 0.1 --no-checks --quiet => --source run weights
attack run --attacks fgsm-unclipped --norm l2 --eps 1 --subset 4 --quiet => --check-subset --subset least 10
attack run --check-subset 9 --quiet => --check-subset --subset 9 images
attack run --attacks fgsm-normalised --norm l2 --eps 1 --subset 4 => --norm l2 known fgsm-normalised
attack run --batchout-in-eval => --batchout-in-eval BatchOut drop
attack byclass --batchout-in-eval --quiet => --batchout-in-eval class drop
attack run --inference-batchout 2 --quiet => --inference-batchout BatchOut drop
attack run --inference-batchout 2 --batchout-in-eval => --batchout-in-eval --inference-batchout drop
# data sets
train --dataset-train nope => 'nope' folder data set CIFAR10
train --dataset-train CIFAR-11 => did you mean CIFAR10
train --dataset-train /nope/cifar => /nope/cifar give an existing folder
train --dataset-train file => 'file' folder data set
train --dataset-train empty => empty data set expected
train --dataset-train nonsense => nonsense data set expected
train --dataset-train one_class --quiet => one_class class 'cat' expected least 2
train --dataset-train damaged --quiet => 1.png replace or remove
train --dataset-train pictures --dataset-test larger --quiet => test images 3x9x9 expected 3x8x8
train --dataset-train pictures --dataset-test others --quiet => classes train test 'dog' 'cow'
train --dataset-train pictures --dataset-test digits --quiet => classes test train give both the same
train LENET --dataset-test nope => 'nope' folder data set
train --quiet => CIFAR10 --dataroot
train --quiet --dataset-train MNIST --dataroot nowhere => MNIST nowhere --dataroot
train LENET --classes 0,99 => digits class '99' classes 0 1 2
train LENET --classes 0,0 => classes '0,0' expected least 2 different
train LENET --classes 3 => classes '3' expected least 2
train LENET --classes 1,2,1 => classes '1,2,1' 2 different
train LENET --classes 0,,1 => class ''
train LENET --classes null,eins => class 'null'
train LENET --train-size 1201 => 1201 images 1 1200
train LENET --val-size 1200 => 1200 images expected 1 1199
train LENET --train-size 10 --val-size 10 => 10 images expected 1 9
train --dataset-train CIFAR10 => CIFAR10 --dataroot
train --dataset-train ./nowhere => folder nowhere --dataroot
train --dataset-train several SMALL => several several data sets cifar10 raw give one
train --dataset-train CIFAR10 --dataroot several SMALL => several/cifar10 2 classes --dataroot
train --dataset-train CIFAR10 --dataroot wrong SMALL => wrong/cifar10 2 classes 3x8x8 --dataroot
train --dataset-train MNIST --dataroot copies SMALL => copies several copies MNIST path
train --dataset-train MNIST --dataroot twofold SMALL => twofold/mnist several data sets give one
train --dataset-train pictures/train SMALL => pictures/train data set expected
train --dataset-train incomplete SMALL => incomplete lacks train-labels-idx1-ubyte t10k-images-idx3-ubyte add them
# folders and files
train TINY --out run => --out run exists choose --resume run
train --dataset-train nowhere --out run => --out run exists choose --resume run
train TINY --out nonsense => --out nonsense exists choose
train TINY --out file => --out file exists choose
train TINY --out . => --out . exists choose
evaluate nowhere => nowhere checkpoint.pt give
evaluate empty => empty checkpoint.pt give
evaluate file => file checkpoint.pt give
evaluate nonsense => nonsense checkpoint.pt give
evaluate run/record.json => run/record.json checkpoint.pt give
train --resume nowhere => nowhere checkpoint.pt give
train --resume run/record.json => run/record.json checkpoint.pt give
train --resume run --lr 1 => --learning-rate run drop
train --resume run --seed 5 --net-type resnet18 => --manual-seed --net-type run drop
train --resume run --classes 0,1 => --classes run drop it
train --resume run --batch-size 5 --momentum 0.5 --nfilters 2 => --batch-size --momentum run drop
train --resume run --no-audit => --audit run drop it
train --resume run --val-size 6 => --val-size run drop it
report nowhere => nowhere folder give
report file => file folder give
report run --groups --control nothing => control 'nothing' 'lenet, 2 filters
report run --markdown --into file => --into file results:begin
evaluate /dev/null => /dev/null checkpoint.pt
evaluate stopped => stopped weights.safetensors train the run
attack stopped --attacks fgsm --eps 0.1 --quiet => stopped weights.safetensors
attack nowhere => nowhere checkpoint.pt
attack run --source nowhere --attacks transfer-fgsm => nowhere checkpoint.pt
train --resume cosine --nepochs 5 --quiet => --nepochs cosine start a new run
train --resume begun --nepochs 1 --quiet => --nepochs 1 epoch 2 begun expected least 2
train --config nowhere => --config nowhere give a YAML file
train --config '' => --config YAML
train --out run/record.json/x => --out run/record.json/x choose another
train TINY --out /proc/x => /proc/x choose another
run --preset quick K4 --results /proc/nothing --quiet => /proc/nothing choose another
run K4 --results run/record.json => --results run/record.json file give a folder
report run/record.json => run/record.json folder give
report failed => failed/failed.json failure delete
report pictures --attacks => perturblab attack RUN
report run --markdown --into without.md => --into without.md 0 lines results:begin
report run --markdown --into one.md => --into one.md 0 lines results:end
report run --markdown --into swapped.md => --into swapped.md swap two
report run --markdown --into twice.md => --into twice.md 2 lines results:begin
export nowhere --pretrained new => nowhere/record.json
export run --onnx name => --onnx name .onnx
export run --onnx run/weights.safetensors => --onnx run/weights.safetensors expected
export run --onnx run => --onnx run .onnx
export run --onnx run/.onnx => --onnx run/.onnx .onnx
export run --onnx there.onnx => there.onnx exists choose
export run --onnx /proc/net.onnx --quiet => /proc/net.onnx choose another
export run --pretrained mixed => mixed exists choose
export run --pretrained mixed --push user/net --quiet => mixed exists net of run choose
export redrawn --onnx new.onnx --quiet => masks train with fixed masks
# easily taken for something else: empty words, numbers beyond 64 bits, names too long
train --net-type '' => --net-type ''
train --dataset-train '' => --dataset-train ''
train TINY --out '' => --out ''
train TINY --resume '' => --resume ''
train TINY --out file/new => --out file/new choose another
train --dataset-train ~nobody-here/x => ~nobody-here/x give an existing folder
train --quiet --dataset-train MNIST --dataroot '~nobody-here' => MNIST ~nobody-here --dataroot
train LENET --device meta => --device 'meta' use cpu
describe --net-type lenet --nmasks 99999999999999999999 => --nmasks
describe --nfilters 2000000000 => --nfilters
train COLOUR --nfilters 2000000000 --dataset-train pictures --quiet => --nfilters
describe --nclasses 99999999999999999999 => --nclasses
describe --channels 99999999999999999999 => --channels
describe --image-size 10000000000 => --image-size
evaluate run --audit --batch-size 99999999999999999999 => --batch-size
--json models => unknown option --json
train -- --nepochs 1 => perturblab train --help
describe --image-size 2000000000 => --image-size 2000000000 smaller
describe --channels 2000000000 --nfilters 2000000000 => memory --nfilters
train TINY --nfilters 2147483647 --out new => --nfilters
train TINY --batch-size 2147483647 --code or --out new => --batch-size 2147483647 use at most
train TINY --out LONG => choose another
train TINY --out DEEP => x/x/x choose another
"""
ROWS = [row.split(" => ") for row in TABLE.strip("\n").splitlines() if not row.startswith("#")]


def words(line: str) -> list[str]:
    return shlex.split(re.sub("|".join(WORDS), lambda word: WORDS[word[0]], line))


def test_table_is_long_and_says_nothing_twice() -> None:
    lines = [line for line, _ in ROWS]
    assert len(lines) == len(set(lines)) > 200


def refuse(good: Path, argv: list[str], tokens: str) -> None:
    """Expect a refusal that tells these tokens in this order."""
    ended = judge(good, argv)
    assert re.search(in_order(tokens), ended.err.splitlines()[-1]), ended.err


@pytest.mark.parametrize(("line", "tokens"), ROWS, ids=[line or "nothing" for line, _ in ROWS])
def test_mistake(line: str, tokens: str, good: Path) -> None:
    refuse(good, words(line), tokens)


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("train --net-type noiseresnet18 --first_filter_size 5", "first_filter_size 5"),
        ("train --net-type perturb_resnet18 --train_masks --redraw_masks train", "trained redrawn drop one"),
        ("train --net-type resnet18 --nmasks 3", "--nmasks resnet18"),
        ("train --device bogus", "--device 'bogus'"),
        (f"train --device cuda:{torch.cuda.device_count()}", "--device use cpu"),
        ("train TINY --out file/new", "--out file/new"),
    ],
)
def test_mistake_in_flags_is_told_before_the_data_are_read(
    line: str, tokens: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the data are read")

    monkeypatch.setattr(data, "load", never)
    refuse(good, words(line), tokens)


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The one mistake that shows only after the first step: no number of it is left behind."""
    ended = run(words("train TINY --lr 1e30 --out new"), tmp_path)
    assert ended.code == 2
    assert re.fullmatch(in_order("perturblab: error: loss nan --learning-rate 1e+29") + ".*\n", ended.err)
    assert not [name for name in ended.changed if ".json" in name or "weights" in name]
    assert run(words("train TINY --out new"), tmp_path).code == 0  # the folder can be used


def test_bytes_that_are_not_text() -> None:
    """A real process: bytes that are not UTF-8, a terminal that knows ASCII only."""
    for argument, encoding in ((b"\xff\xfe", "utf-8"), ("é".encode(), "ascii")):
        command = [sys.executable.encode(), *b"-m perturblab train --act".split(), argument]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert re.fullmatch(rb"perturblab: error: --act got .*; see --help\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    "line",
    ["train --net-type {}", "train --dataset-train {}", "train LENET --classes {},0", "{}", "train {}", "report {}"],
)
def test_control_characters_are_shown_not_sent(line: str, good: Path) -> None:
    refuse(good, [word.replace("{}", "\x1b[31m\n\r\x07 red") for word in words(line)], "red")


GOOD = (
    "models --json",
    "describe --net-type lenet --nfilters 2 --image-size 28,28 --channels 1 --nclasses 10 --json",
    "train TINY --optim-method Adam --lr 1e-3 --momentum 0.9 --out new",
    "train TINY --defence batchout --batchout-eta 0.1 --batchout-k 0.5 --classes 0,1,2 --out new",
    "train TINY --defence pgd --defence-eps 8/255 --defence-steps 2 --seed 3 --out new",
    "evaluate run --audit --batch-size 64 --json",
    "attack run --attacks fgsm,uniform --eps 0,8/255 --subset 10 --no-checks --quiet --json",
    "attack run --attacks deepfool --iterations 1,2 --norm l2 --subset 5 --no-checks --quiet",
    "attack run --attacks transfer-fgsm --source mixed --eps 0.1 --subset 10 --no-checks --quiet",
    "list --tag pnn --json",
    "show K4 --json",
    "run K4 --preset quick --seeds 2 --jobs 1 --dry-run --quiet",
    "report run --markdown",
    "report . --attacks",
)


@search(60)
@given(st.sampled_from(GOOD).map(words).flatmap(garbled).flatmap(lambda argv: st.just(argv) | garbled(argv or ["-"])))
@example(["train", "\udcff"])
@example(["evaluate", "\udcff"])
def test_garbled_command_line(good: Path, argv: list[str]) -> None:
    judge(good, argv, needs=["run", "mixed"], may_succeed=True, names=[*argv, "command", "run", "results"])


# Every flag of a number or of a choice, from the configurations themselves: its values just out of range, its choices.
BEYOND = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
Typed = tuple[str, str, list[str], list[Any]]


def typed() -> Iterator[Typed]:
    for command, config in (("train", TrainConfig), ("attack nowhere", AttackConfig)):
        for name, schema in config.model_json_schema()["properties"].items():
            parts = [part.get("items", part) for part in schema.get("anyOf", [schema])]
            outside = [str(part[end] + step) for part in parts for end, step in BEYOND.items() if end in part]
            choices = [
                value for part in parts for value in part.get("enum", [part["const"]] if "const" in part else [])
            ]
            if choices or any(part.get("type") in ("integer", "number") for part in parts):
                yield command, name, outside, choices


@search(80)
@given(st.sampled_from(sorted(typed())), st.sampled_from("-_"), st.data())
def test_value_that_a_flag_cannot_have(good: Path, flag: Typed, dash: str, data: st.DataObject) -> None:
    command, name, outside, choices = flag
    word = data.draw(st.sampled_from(["", "x y", "nan", "1e999", "zwölf", "٣٫٥", "Adam ", "\x1b[31m", *outside]))
    ended = judge(good, [*command.split(), f"--{name.replace('_', dash)}={word}"])
    assert re.search(in_order(f"--{name.replace('_', '-')} got"), ended.err)
    assert all(str(choice) in ended.err for choice in choices)


# The published codes let --dropout pass where a net does not read it: that is a warning.
UNREAD = [(net, name) for net in NETS for name in sorted({*NET_OPTIONS} - options_read(net) - {"dropout"})]


@search(25)
@given(st.sampled_from(UNREAD), st.sampled_from(["describe", "train TINY --out new"]), st.sampled_from("-_"))
def test_option_that_the_net_does_not_read(good: Path, unread: tuple[str, str], command: str, dash: str) -> None:
    net, name = unread
    part = TrainConfig.model_json_schema()["properties"][name]["anyOf"][0]
    value = [str(part["enum"][0])] if "enum" in part else {"boolean": [], "number": ["0.5"]}.get(part["type"], ["2"])
    flag = f"--{name.replace('_', dash)}"
    refuse(
        good, [*words(command), "--net-type", net, flag, *value], f"--{name.replace('_', '-')} {net} read --net-type"
    )
