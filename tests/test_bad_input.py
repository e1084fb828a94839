"""The user's mistakes: one line that says what is wrong, exit code 2, no traceback, and nothing written."""

import hashlib
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perturblab import checkpoint, cli, data

LENET = "--dataset-train digits --net-type lenet --nfilters 2"
TINY = f"{LENET} --nepochs 1 --train-size 20 --batch-size 10 --nthreads 1"
PERTURB = "--dataset-train digits --net-type perturb_resnet18 --nfilters 4"
COLOUR = "--net-type perturb_resnet18 --nfilters 4 --first_filter_size 0"


@dataclass(frozen=True)
class Told:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


Tell = Callable[..., Told]


def files(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest() if path.is_file() else "folder"
    return found


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def pictures(folder: Path, size: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(2):
                pixels = np.full((size, size, 3), 40 * number + k, np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
    return folder


def _saved(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Copy the run beside it, and change its checkpoint."""
    shutil.copytree(folder.parent / "run", folder)
    content = checkpoint.load_checkpoint(folder / "checkpoint.pt")
    changed = change(content)
    saved = content if changed is None else changed
    if isinstance(saved, dict):
        saved = {**saved, "digest": checkpoint.digest(saved)}  # changed on purpose, and whole
    torch.save(saved, folder / "checkpoint.pt")


def _without(key: str, content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


def _broken_runs(home: Path) -> None:
    for name in ("torn", "hostile", "text", "blank", "torn_weights", "no_weights", "other_weights", "torn_record"):
        shutil.copytree(home / "run", home / name)
    content = (home / "run/checkpoint.pt").read_bytes()
    (home / "torn/checkpoint.pt").write_bytes(content[: len(content) // 2])
    (home / "hostile/checkpoint.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    (home / "text/checkpoint.pt").write_text("not a checkpoint")
    (home / "blank/checkpoint.pt").write_bytes(b"")
    (home / "torn_weights/weights.safetensors").write_bytes((home / "run/weights.safetensors").read_bytes()[:300])
    (home / "no_weights/weights.safetensors").unlink()
    shutil.copy(home / "wide/weights.safetensors", home / "other_weights/weights.safetensors")
    (home / "torn_record/record.json").write_text('{"version": 1, "counts": {')


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good run, broken ones, and files where folders should be."""
    home = tmp_path_factory.mktemp("world")
    for name, more in (("run", ""), ("wide", "--nfilters 3")):
        assert cli.main(shlex.split(f"train {TINY} {more} --quiet --out {home / name}")) == 0
    _broken_runs(home)
    _saved(home / "list", lambda content: [1, 2])
    _saved(home / "empty_dict", lambda content: {})
    for key in ("config", "hashes", "model", "state", "rows"):
        _saved(home / f"no_{key}", partial(_without, key))
    _saved(home / "config_is_text", lambda content: content.update(config="text"))
    _saved(home / "another_option", lambda content: content["config"].update(colour=1))
    _saved(home / "another_net", lambda content: content["config"].update(nfilters=5))
    _saved(home / "another_version", lambda content: content.update(version=99))
    _saved(home / "other_images", lambda content: content["hashes"].update(test="0" * 64, train="0" * 64))
    (home / "file").write_text("text")
    (home / "empty").mkdir()
    (home / "nonsense").mkdir()
    (home / "nonsense/notes.txt").write_text("text")
    for name, text in (("bad_json", "{"), ("deep_json", "[" * 100_000), ("odd_record", '{"version": 1, "counts": 3}')):
        (home / name).mkdir()
        (home / name / "record.json").write_text(text)
    pictures(home / "pictures")
    pictures(home / "larger", size=9)
    pictures(home / "others", classes=("cat", "cow"))
    pictures(home / "one_class", classes=("cat",))
    (pictures(home / "damaged") / "train/dog/1.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return home


@pytest.fixture
def home(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder; the command runs in it."""
    shutil.copytree(world, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command line; a warning would be more lines on stderr, so there must be none."""

    def run(*argv: str) -> Told:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            code = cli.main(argv)
        assert [str(warning.message) for warning in warned] == []
        return Told(code, *capsys.readouterr())

    return run


def check(told: Told, pattern: str) -> None:
    assert told.code == cli.MISTAKE
    assert told.out == ""
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("perturblab: error: ")
    assert "Traceback" not in told.err
    assert re.search(pattern, lines[0]), lines[0]


OPTIONS = [
    # unknown flags: the nearest right one is named
    ("train --nepoch 5", r"unknown option --nepoch; did you mean --nepochs\?"),
    ("train --nfilter=4", r"unknown option --nfilter; did you mean --nfilters\?"),
    ("train --batchsize 4", r"unknown option --batchsize; did you mean --batch[-_]size\?"),
    ("train --learning-rat 1", r"unknown option --learning-rat; did you mean --learning-rate\?"),
    ("train --first-filtersize 3", r"did you mean --first[-_]filter[-_]size\?"),
    ("train --unique-mask", r"did you mean --unique[-_]masks\?"),
    ("train --no-nepochs", r"unknown option --no-nepochs; did you mean --nepochs\?"),
    ("train --Nepochs 5", r"unknown option --Nepochs; did you mean --nepochs\?"),
    ("describe --image-sise 3", r"unknown option --image-sise; did you mean --image[-_]size\?"),
    ("evaluate run --jso", r"unknown option --jso; did you mean --json\?"),
    ("models --jsn", r"unknown option --jsn; did you mean --json\?"),
    ("report --controll x", r"unknown option --controll; did you mean --control\?"),
    ("train --zzzzzzzzzz", r"unknown option --zzzzzzzzzz; see perturblab train --help"),
    ("train --ünïcödé 1", r"unknown option --ünïcödé"),
    ("train -z", r"unknown option -z"),
    ("--verbose", r"unknown option --verbose"),
    ("evaluate run --nepochs 3", r"unknown option --nepochs"),
    ("report --audit", r"unknown option --audit"),
    # commands, operands, missing values
    ("", r"no command given; see perturblab --help"),
    ("bogus", r"invalid choice: 'bogus'.*train"),
    ("TRAIN", r"invalid choice: 'TRAIN'"),
    ("''", r"invalid choice: ''"),
    ("train train", r"'train'.*perturblab train --help"),
    ("train models", r"'models'.*belongs to no option"),
    ("models extra", r"'extra'.*perturblab models --help"),
    ("evaluate run run", r"'run'.*belongs to no option"),
    ("evaluate", r"required: RUN"),
    ("train --nepochs", r"--nepochs.*expected one argument"),
    ("train --nepochs --audit", r"--nepochs.*expected one argument"),
    ("report --control", r"--control.*expected one argument"),
    ("train --audit=yes", r"--audit.*'yes'"),
    ("train --no-unique_masks=1", r"--unique-masks.*'1'"),
    ("models --json=1", r"--json.*'1'"),
]

VALUES = [
    # whole numbers
    ("train --nepochs 3.5", r"--nepochs got '3\.5'.*integer"),
    ("train --nepochs 0", r"--nepochs got '0'.*1"),
    ("train --nepochs -1", r"--nepochs got '-1'.*1"),
    ("train --nepochs nan", r"--nepochs got 'nan'.*integer"),
    ("train --nepochs inf", r"--nepochs got 'inf'.*integer"),
    ("train --nepochs 1e3", r"--nepochs got '1e3'.*integer"),
    ("train --nepochs ''", r"--nepochs got ''.*integer"),
    ("train --nepochs zwölf", r"--nepochs got 'zwölf'.*integer"),
    ("train --nepochs ٣٫٥", r"--nepochs got '٣٫٥'.*integer"),
    ("train --batch-size 0", r"--batch-size got '0'.*1"),
    ("train --batch_size 10.5", r"--batch-size got '10\.5'.*integer"),
    ("train --batch-size 16,16", r"--batch-size got '16,16'.*integer"),
    ("train --seed 1.5", r"--manual-seed got '1\.5'.*integer"),
    ("train --manual-seed -1", r"--manual-seed got '-1'.*0"),
    ("train --nfilters 0", r"--nfilters got '0'.*1"),
    ("train --nfilters 64.0001", r"--nfilters got '64\.0001'.*integer"),
    ("train --net-type perturb_resnet18 --nmasks 0", r"--nmasks got '0'.*1"),
    ("train --net-type perturb_resnet18 --nmasks 1.5", r"--nmasks got '1\.5'.*integer"),
    ("train --nthreads 0", r"--nthreads got '0'.*1"),
    ("train --train-size 0", r"--train-size got '0'.*1"),
    ("train --train-size -5", r"--train-size got '-5'.*1"),
    ("train --val-size -1", r"--val-size got '-1'.*0"),
    ("train --val-size 0.1", r"--val-size got '0\.1'.*integer"),
    ("train --net-type lbcnet --depth 0", r"--depth got '0'.*1"),
    # numbers
    ("train --lr nan", r"--learning-rate got 'nan'.*finite"),
    ("train --learning-rate inf", r"--learning-rate got 'inf'.*finite"),
    ("train --learning_rate 1e999", r"--learning-rate got '1e999'.*finite"),
    ("train --lr 0", r"--learning-rate got '0'.*greater than 0"),
    ("train --lr=-1e-3", r"--learning-rate got '-1e-3'.*greater than 0"),
    ("train --lr 1e-400", r"--learning-rate got '1e-400'.*greater than 0"),
    ("train --lr ''", r"--learning-rate got ''.*number"),
    ("train --lr 0,001", r"--learning-rate got '0,001'.*number"),
    ("train --net-type perturb_resnet18 --level nan", r"--level got 'nan'.*finite"),
    ("train --net-type perturb_resnet18 --level=-inf", r"--level got '-inf'.*finite"),
    ("train --net-type perturb_resnet18 --scale_noise nan", r"--scale-noise got 'nan'.*finite"),
    ("train --momentum 1", r"--momentum got '1'.*less than 1"),
    ("train --momentum -0.1", r"--momentum got '-0\.1'.*0"),
    ("train --weight-decay -1", r"--weight-decay got '-1'.*0"),
    ("train --weight-decay nan", r"--weight-decay got 'nan'.*finite"),
    ("train --adam-beta1 1", r"--adam-beta1 got '1'.*less than 1"),
    ("train --adam-beta2 1.5", r"--adam-beta2 got '1\.5'.*less than 1"),
    ("train --dropout 1.01 --net-type lenet", r"--dropout got '1\.01'.*1"),
    ("train --dropout nan --net-type lenet", r"--dropout got 'nan'.*finite"),
    ("train --net-type lbcnet --sparsity 0", r"--sparsity got '0'.*greater than 0"),
    ("train --net-type lbcnet --sparsity 2", r"--sparsity got '2'.*1"),
    # choices
    ("train --code xx", r"--code got 'xx'.*'or', 'kl' or 'up'"),
    ("train --code ''", r"--code got ''.*'or', 'kl' or 'up'"),
    ("train --optim-method adam", r"--optim-method got 'adam'.*'SGD', 'Adam'"),
    ("train --optimizer-schedule step", r"--optimizer-schedule got 'step'.*'cosine'"),
    ("train --act swish", r"--act got 'swish'.*'relu'"),
    ("train --pool-type min", r"--pool-type got 'min'.*'max', 'avg', 'stride' or 'overlap'"),
    ("train --noise-type laplace", r"--noise-type got 'laplace'.*'uniform' or 'normal'"),
    ("train --redraw-masks sometimes", r"--redraw-masks got 'sometimes'.*'never'"),
    ("train --first-masks -1", r"--first-masks got '-1'.*0"),
    ("train --operator roll", r"--operator got 'roll'.*'shift'"),
    ("train --anchors ternary", r"--anchors got 'ternary'.*'binary'"),
    ("train --filter_size 9", r"--filter-size got '?9'?.*0, 1, 3, 5 or 7"),
    ("train --filter_size 3.5", r"--filter-size got '3\.5'.*0, 1, 3, 5 or 7"),
    ("train --filter_size -1", r"--filter-size got '-1'.*0, 1, 3, 5 or 7"),
    ("train --first-filter-size 2", r"--first-filter-size got '?2'?.*0, 1, 3, 5 or 7"),
    ("train --learning-rate-decay 0.1", r"--learning-rate-decay is read by none of the published codes"),
    ("describe --learning_rate_decay 0.1", r"--learning-rate-decay is read by none"),
    # what only describe and evaluate take
    ("describe --image-size 0", r"--image-size got '0'.*at least 1"),
    ("describe --image-size 8,8,8", r"--image-size got '8,8,8'.*N,N"),
    ("describe --image-size 3.5", r"--image-size got '3\.5'"),
    ("describe --image_size ''", r"--image-size got ''"),
    ("describe --channels -3", r"--channels got '-3'.*at least 1"),
    ("describe --nclasses 1e3", r"--nclasses got '1e3'"),
    ("describe --nclasses ²", r"--nclasses got '²'"),
    ("evaluate run --batch-size 0", r"--batch-size got '0'.*at least 1"),
    ("evaluate run --batch_size 3.5", r"--batch-size got '3\.5'"),
]

COMBINATIONS = [
    ("train --net-type resnet", r"no net is called 'resnet'; did you mean resnet\d+\?"),
    ("train --net-type Resnet18", r"no net is called 'Resnet18'; did you mean resnet18\?"),
    ("train --net-type 'résnet18 '", r"no net is called 'résnet18 '; did you mean resnet18\?"),
    ("describe --net-type ../resnet18", r"no net is called"),
    ("train --first-filter-size 3", r"--first-filter-size given, but resnet18 does not read it.*--net-type"),
    ("train --no-unique_masks", r"--unique-masks given, but resnet18"),
    ("train --net-type noiseresnet18 --nmasks 2 --mix_maps", r"--nmasks, --mix-maps given, but noiseresnet18"),
    ("train --net-type perturb_resnet18 --sparsity 0.5", r"--sparsity given, but perturb_resnet18"),
    ("train --net-type lbcnet --level 0.1", r"--level given, but lbcnet"),
    *[
        (f"{command} --net-type noiseresnet18 --first_filter_size {size}", rf"first_filter_size is {size}.* 3 or 7")
        for command in ("train --dataset-train digits", "describe")
        for size in (0, 1, 5)
    ],
    (f"describe {COLOUR} --nmasks 2", r"nmasks 2 groups .* 4 filters .* 3 channels; use a multiple of 3, or nmasks 1"),
    (f"train {COLOUR} --nmasks 2 --dataset-train pictures --quiet", r"4 filters are no multiple of 3 channels"),
    ("describe --code up --net-type noiseresnet50 --first_filter_size 5", r"first_filter_size is 5"),
    (f"train {PERTURB} --train_masks --redraw_masks train", r"cannot be both trained and redrawn.*drop one"),
    ("describe --net-type lenet --train_masks --redraw-masks always", r"cannot be both trained and redrawn"),
    ("describe --net-type noiseresnet18 --operator shift --level 0.1", r"shift has no masks, and level is 0\.1; drop"),
    (
        "train --net-type noiseresnet18 --operator anchors --untied_bias",
        r"anchors has no masks, and untied_bias is True",
    ),
    ("describe --net-type perturb_resnet18 --operator shift", r"--operator given, but perturb_resnet18 does not read"),
    (
        "describe --net-type perturb_resnet18 --first-masks 5 --first_filter_size 3",
        r"a first layer of 3x3 has none; drop",
    ),
    (
        "describe --net-type perturb_resnet18 --first-sigmoid --use_act",
        r"first_sigmoid .* and use_act another; drop one",
    ),
    ("describe --net-type lenet --first-mix", r"--first-mix given, but lenet does not read it"),
    ("describe --net-type lbcnet --image-size 4", r"needs at least 5x5"),
    (f"train {LENET} --batch-size 1", r"--batch-size 1 leaves a batch of 1 of 1200"),
    (
        f"train {LENET} --train-size 21 --batch-size 10",
        r"--batch-size 10 leaves a batch of 1 of 21.*another batch size",
    ),
    (f"train {LENET} --code or --batch-size 5000", r"--batch-size 5000 is larger than the 1200 training images"),
    ("train --device bogus", r"--device got 'bogus'.*use cpu"),
    ("train --device ''", r"--device got ''"),
    ("train --device cpu:x", r"--device got 'cpu:x'"),
    ("train --device mps:0", r"--device got 'mps:0'"),
    (f"train --device cuda:{torch.cuda.device_count()}", r"--device got 'cuda:\d+', which is not to be had here"),
    ("train --resume run --out new", r"--resume goes on in the run's own folder; drop --out"),
]

DATA = [
    ("train --dataset-train nope", r"'nope' is neither a folder nor a data set.*CIFAR10"),
    ("train --dataset-train CIFAR-11", r"did you mean CIFAR10\?"),
    ("train --dataset-train /nope/cifar", r"there is no folder /nope/cifar; give an existing folder"),
    ("train --dataset-train file", r"'file' is neither a folder nor a data set"),
    ("train --dataset-train empty", r"empty holds no data set; expected"),
    ("train --dataset-train nonsense", r"nonsense holds no data set; expected"),
    ("train --dataset-train one_class --quiet", r"one_class has the one class 'cat'; expected at least 2"),
    ("train --dataset-train damaged --quiet", r"1\.png is no readable image.*replace or remove"),
    ("train --dataset-train pictures --dataset-test larger --quiet", r"test images of 3x9x9, expected 3x8x8"),
    ("train --dataset-train pictures --dataset-test others --quiet", r"other classes in test than in train"),
    ("train --dataset-train pictures --dataset-test digits --quiet", r"classes in test"),
    (f"train {LENET} --dataset-test nope", r"'nope' is neither a folder nor a data set"),
    ("train --quiet", r"CIFAR10 is neither under .* nor in the cache.*--dataroot"),
    ("train --quiet --dataset-train MNIST --dataroot nowhere", r"MNIST is neither under .*nowhere nor in the cache"),
    (f"train {LENET} --classes 0,99", r"digits has no class '99'; its classes are 0, 1, 2"),
    (f"train {LENET} --classes 0,0", r"classes are '0,0'; expected at least 2 different"),
    (f"train {LENET} --classes 3", r"classes are '3'; expected at least 2"),
    (f"train {LENET} --classes 1,2,1", r"classes are '1,2,1'.*different"),
    (f"train {LENET} --classes 0,,1", r"no class ''"),
    (f"train {LENET} --classes ''", r"no class ''"),
    (f"train {LENET} --classes null,eins", r"no class 'null'"),
    (f"train {LENET} --train-size 1201", r"1201 images.*1 to 1200"),
    (f"train {LENET} --train-size {10**30}", r"--train-size got '10{30}'.*less than 2147483648"),
    (f"train {LENET} --val-size 1200", r"1200 images are to be held out; expected 1 to 1199"),
    (f"train {LENET} --train-size 10 --val-size 10", r"10 images are to be held out; expected 1 to 9"),
]

FOLDERS = [
    (f"train {TINY} --out run", r"--out run exists and is never overwritten; choose another.*--resume run"),
    (f"train {TINY} --out nonsense", r"--out nonsense exists and is never overwritten"),
    (f"train {TINY} --out file", r"--out file exists and is never overwritten"),
    (f"train {TINY} --out .", r"--out \. exists and is never overwritten"),
    *[
        (f"{command} {folder}", rf"{folder} holds no checkpoint\.pt; give the folder of a run")
        for command in ("evaluate", "train --resume")
        for folder in ("nowhere", "empty", "file", "nonsense", "run/record.json")
    ],
    *[
        (f"{command} {folder}", rf"{folder}/checkpoint\.pt cannot be read as a checkpoint.*restore")
        for command in ("evaluate", "train --resume")
        for folder in ("torn", "hostile", "text", "blank")
    ],
    *[
        (f"{command} list", r"list/checkpoint\.pt holds a list, not a checkpoint; restore")
        for command in ("evaluate", "train --resume")
    ],
    ("evaluate torn_weights", r"torn_weights/weights\.safetensors cannot be read as weights.*restore"),
    ("evaluate no_weights", r"no_weights holds no weights\.safetensors; train the run first"),
    ("evaluate other_weights", r"weights\.safetensors holds the weights of another net"),
    ("evaluate other_images", r"the test images of digits are not those of other_images; give --dataroot"),
    ("train --resume other_images", r"the train images of digits are not those of other_images"),
    ("train --resume run --lr 1", r"--learning-rate given, and run was started with another value; drop it"),
    ("train --resume run --seed 5 --net-type resnet18", r"--manual-seed, --net-type given, and run was started with"),
    ("train --resume run --classes 0,1", r"--classes given, and run was started with"),
    ("train --resume run --nepochs 0", r"--nepochs got '0'"),
    ("report nowhere", r"nowhere is no folder"),
    ("report file", r"file is no folder"),
    ("report bad_json", r"bad_json/record\.json is no JSON.*repair"),
    ("report deep_json", r"deep_json/record\.json is no JSON"),
    ("report odd_record", r"odd_record/record\.json: .*repair"),
    ("report torn_record", r"torn_record/record\.json is no JSON"),
    ("report run --groups --control nothing", r"control is 'nothing', expected one of 'lenet, 2 filters"),
    ("report run --markdown --into nowhere", r"nowhere cannot be read"),
    ("report run --markdown --into file", r"results:begin"),
]

# Mistakes that are easily taken for something else: empty words, numbers beyond 64 bits, files that are whole but odd.
HARD = [
    ("train --net-type ''", r"--net-type got ''|no net is called ''"),
    ("train --dataset-train ''", r"--dataset-train got ''|'' is neither a folder nor a data set"),
    (f"train {TINY} --out ''", r"--out got ''"),
    (f"train {TINY} --resume ''", r"--resume got ''|holds no checkpoint"),
    (f"train {TINY} --out file/new", r"file"),
    ("train --dataset-train ~nobody-here/x", r"there is no folder ~nobody-here/x"),
    ("train --quiet --dataset-train MNIST --dataroot '~nobody-here'", r"MNIST is neither under .*~nobody-here nor"),
    ("describe --quiet --image-size 0", r"--image-size got '0'"),
    (f"train {LENET} --device meta", r"--device got 'meta'"),
    ("train --nthreads 3000000000", r"--nthreads got '3000000000'"),
    ("train --nfilters 99999999999999999999", r"--nfilters got '9{20}'"),
    ("describe --nfilters 1000000000000", r"--nfilters got '10{12}'"),
    ("describe --net-type lenet --nmasks 99999999999999999999", r"--nmasks got '9{20}'"),
    ("describe --nfilters 2000000000", r"--nfilters|memory"),
    (
        "train --net-type perturb_resnet18 --first_filter_size 7 --nfilters 2000000000 "
        "--dataset-train pictures --quiet",
        r"--nfilters|memory",
    ),
    ("describe --nclasses 99999999999999999999", r"--nclasses got '9{20}'"),
    ("describe --channels 99999999999999999999", r"--channels got '9{20}'"),
    ("describe --image-size 10000000000", r"--image-size got '10{10}'"),
    ("evaluate run --audit --batch-size 99999999999999999999", r"--batch-size got '9{20}'"),
    ("--json models", r"unknown option --json; (?!did you mean --json)"),
    ("train --bogus-thing 1", r"unknown option --bogus-thing; see perturblab train --help"),
    ("train -- --nepochs 1", r"(?!.*did you mean --lr)"),
    *[
        (f"{command} {folder}", rf"{folder}/checkpoint\.pt .*(restore|the perturblab that wrote it)")
        for command in ("evaluate", "train --resume")
        for folder in ("empty_dict", "no_config", "no_hashes", "config_is_text", "another_option", "another_version")
    ],
    *[(f"train --resume {name}", rf"{name}/checkpoint\.pt .*restore") for name in ("no_model", "no_state", "no_rows")],
    ("train --resume another_net", r"another_net/checkpoint\.pt .*another net"),
]

TABLE = {"options": OPTIONS, "values": VALUES, "combinations": COMBINATIONS, "data": DATA, "folders": FOLDERS}


def test_table_is_long_and_says_nothing_twice() -> None:
    lines = [line for part in [*TABLE.values(), HARD] for line, _ in part]
    assert len(lines) == len(set(lines)) > 200


def rows(table: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("line", "pattern"), table, ids=[line or "nothing" for line, _ in table])


@rows([row for part in TABLE.values() for row in part])
def test_mistake(line: str, pattern: str, home: Path, tell: Tell) -> None:
    before = files(home)
    check(tell(*shlex.split(line)), pattern)
    assert files(home) == before


@rows(HARD)
def test_hard_mistake(line: str, pattern: str, home: Path, tell: Tell) -> None:
    before = files(home)
    check(tell(*shlex.split(line)), pattern)
    assert files(home) == before


@rows(
    [
        ("train --net-type noiseresnet18 --first_filter_size 5", r"first_filter_size is 5"),
        ("train --net-type perturb_resnet18 --train_masks --redraw_masks train", r"both trained and redrawn"),
        ("train --net-type resnet18 --nmasks 3", r"--nmasks given"),
        ("train --device bogus", r"--device got 'bogus'"),
        (f"train {TINY} --out file/new", r"file"),
    ],
)
def test_mistake_in_flags_is_told_before_the_data_are_read(
    line: str, pattern: str, home: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the data are read")

    monkeypatch.setattr(data, "load", never)
    check(tell(*shlex.split(line)), pattern)


def test_loss_that_is_not_finite(home: Path, tell: Tell) -> None:
    """The one mistake that shows only after the first step: no number of it is left behind."""
    check(
        tell(*shlex.split(f"train {TINY} --lr 1e30 --quiet --out new")), r"the loss is nan.*try --learning-rate 1e\+29"
    )
    assert not list((home / "new").rglob("*.json*")) + list((home / "new").rglob("weights*"))
    assert tell(*shlex.split(f"train {TINY} --quiet --out new")).code == 0  # the folder can be used


def test_disk_that_cannot_be_written(home: Path, tell: Tell) -> None:
    check(tell(*shlex.split(f"train {TINY} --quiet --out /proc/nope/run")), r"/proc/nope")


def test_loading_a_checkpoint_executes_nothing(home: Path, tell: Tell) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (home / "hostile/checkpoint.pt").write_bytes(pickle.dumps(Hostile(), protocol=protocol))
        told = tell("evaluate", "hostile")
        check(told, r"hostile/checkpoint\.pt cannot be read as a checkpoint")
        assert "weights_only" not in told.err  # PyTorch's own advice: load it all the same
        assert not (home / "pwned").exists()


def test_bytes_that_are_no_text(home: Path) -> None:
    """A real process: an argument of bytes that are not UTF-8, and a terminal that knows ASCII only."""
    for argument, encoding in ((b"\xff\xfe", "utf-8"), ("é".encode(), "ascii")):
        done = subprocess.run(
            [sys.executable.encode(), b"-m", b"perturblab", b"train", b"--act", argument],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, b"")
        assert re.fullmatch(rb"perturblab: error: --act got .*; see --help\n", done.stderr), done.stderr


def test_control_characters_are_shown_not_sent(home: Path, tell: Tell) -> None:
    for line in (
        "train --net-type {}",
        "train --dataset-train {}",
        f"train {LENET} --classes {{}},0",
        "{}",
        "train {}",
    ):
        told = tell(*line.format("\x1b[31mred\n\r\x07").split(" "))
        check(told, "red")
        assert all(char.isprintable() for char in told.err.rstrip("\n")), told.err
