"""Flags that are right one by one and impossible together."""

import random
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults.case import Case, Prepare, fill, nothing
from faults.kinds.parquet import columns, table, write
from faults.world import TINY
from perturblab.config import NET_OPTIONS
from perturblab.models import NETS, options_read

VALUE = {
    **{"nfilters": "3", "nmasks": "2", "unique_masks": "", "train_masks": "", "mix_maps": "", "level": "0.1"},
    **{"scale_noise": "2", "noise_type": "normal", "filter_size": "3", "first_filter_size": "3", "act": "elu"},
    **{"use_act": "", "pool_type": "avg", "constant_masks": "", "redraw_masks": "train", "untied_bias": ""},
    **{"mask_memory": "seed", "nweights": "2", "depth": "2", "full": "9", "anchors": "dense", "sparsity": "0.4"},
    **{"operator": "shift", "first_masks": "2", "first_sigmoid": "", "first_mix": ""},
    **{"padding": "1", "reading": "A", "blocks": "2", "norm_order": "bn-relu"},
}
LENET = shlex.join(TINY)
SMALL = "--net-type lenet --nfilters 2 --nepochs 1 --batch-size 2 --quiet --out new"
LINES = (
    # nets
    "describe --net-type noiseresnet18 --first_filter_size 5",
    "describe --net-type perturb_resnet18 --nfilters 4 --first_filter_size 0 --nmasks 2",
    "describe --net-type perturb_resnet18 --train_masks --redraw_masks train",
    "describe --net-type perturb_resnet18 --train_masks --mask-memory bf16",
    "describe --net-type perturb_resnet18 --mask-memory seed --redraw_masks always",
    "describe --net-type noiseresnet18 --operator shift --level 0.1",
    "describe --net-type perturb_resnet18 --first-masks 5 --first_filter_size 3",
    "describe --net-type perturb_resnet18 --first-sigmoid --use_act",
    "describe --net-type lbcnet --image-size 4",
    "describe --net-type bottleneck_resnet --reading A --nfilters 3",
    "describe --net-type batchout_mnist --padding 2 --image-size 28",
    "describe --net-type batchout_mnist --image-size 4 --padding 0",
    "describe --net-type batchout_cifar --image-size 2",
    "describe --net-type vgg19 --image-size 1",
    "describe --learning-rate-decay 0.1",
    "describe --net-type lbcnet --sparsity 0",
    # training
    f"train {LENET} --resume run --out new",
    f"train {LENET} --batch-size 1 --out new",
    f"train {LENET} --train-size 21 --out new",
    f"train {LENET} --batch-size 5000 --code or --out new",
    f"train {LENET} --val-size 20 --out new",
    f"train {LENET} --val-size 1200 --out new",
    f"train {LENET} --train-size 5000 --out new",
    f"train {LENET} --train-size 20 --val-size 19 --batch-size 10 --out new",
    f"train {LENET} --classes 0 --out new",
    f"train {LENET} --classes 0,0 --out new",
    f"train {LENET} --classes 0,77 --out new",
    f"train {LENET} --classes ,, --out new",
    f"train {LENET} --dataset-test pictures --out new",
    f"train {LENET} --dataset-test nowhere --out new",
    f"train --dataset-train pictures --dataset-test larger {SMALL}",
    f"train --dataset-train pictures --dataset-test others {SMALL}",
    f"train --dataset-train one {SMALL}",
    f"train --dataset-train set --dataset-test pictures {SMALL}",
    f"train --dataset-train several {SMALL}",
    f"train --dataset-train CIFAR10 --dataroot several {SMALL}",
    f"train --dataset-train CIFAR10 --dataroot wrong {SMALL}",
    f"train --dataset-train MNIST --dataroot copies {SMALL}",
    f"train --dataset-train pictures/train {SMALL}",
    f"train --dataset-train nothing {SMALL}",
    # defences
    f"train {LENET} --batchout-eta 0.1 --out new",
    f"train {LENET} --defence-eps 0.1 --out new",
    f"train {LENET} --defence fgsm --batchout-k 3 --out new",
    f"train {LENET} --defence fgsm --defence-steps 3 --out new",
    f"train {LENET} --defence batchout --defence-eps 0.1 --out new",
    f"train {LENET} --defence batchout --batchout-at nowhere --out new",
    f"train {LENET} --defence batchout --batchout-at all-after:nowhere --out new",
    f"train {LENET} --defence batchout --batchout-at '' --out new",
    f"train {LENET} --defence batchout --batchout-eta '0.1;0.2;0.3;0.4;0.5;0.6;0.7' --out new",
    f"train {LENET} --defence batchout --batchout-eta U[1,0] --out new",
    f"train {LENET} --defence batchout --batchout-eta 0.3:0.6 --out new",
    f"train {LENET} --defence batchout --batchout-eta nan --out new",
    f"train {LENET} --defence batchout --batchout-k 1.5 --out new",
    f"train {LENET} --defence batchout --batchout-k 640 --out new",
    f"train {LENET} --defence batchout --batchout-eta 0.1,0.2 --batchout-eta-per image --out new",
    f"train {LENET} --defence batchout --batchout-partners different-class --classes 0,1 --batch-size 2 --out new",
    f"train {LENET} --defence batchout --batchout-partners permutation --batchout-k 1 --out new",
    f"train {LENET} --defence batchout --batchout-partners no-self --batch-size 1 --out new",
    f"train {LENET} --defence batchout --batchout-partners noise --batchout-shared partners --out new",
    f"train {LENET} --defence fgsm-half --defence-mode train --batch-size 2 --out new",
    f"train {LENET} --defence pgd --defence-eps 8/0 --out new",
    f"train {LENET} --device cuda:5 --out new",
    f"train {LENET} --device meta --out new",
    f"train {LENET} --learning-rate-decay 0.5 --out new",
    f"train {LENET} --lr 1e30 --out new",
    # resuming
    "train --resume run --nfilters 7 --quiet",
    "train --resume run --lr 0.5 --seed 9 --quiet",
    "train --resume run --dataset-train pictures --quiet",
    "train --resume run --dataset-train nowhere --quiet",
    "train --resume stopped --nepochs 0 --quiet",
    "train --resume cosine --nepochs 5 --quiet",
    "train --resume run --device cuda:3 --quiet",
    "train --resume nowhere --quiet",
    "train --resume '' --quiet",
    "train --resume longer --nepochs 1 --quiet",
    "train --resume begun --nepochs 1 --quiet",
    "train --dataset-train digits --net-type batchout_mnist --train-only norms --nepochs 1 --quiet",
    # attacks
    "attack run --attacks bogus",
    "attack run --attacks transfer-fgsm",
    "attack run --attacks transfer-bogus --source mixed",
    "attack run --attacks transfer-fgsm --source colour --eps 0.1 --subset 4 --no-checks --quiet",
    "attack run --attacks transfer-fgsm --source nowhere",
    "attack run --attacks transfer-fgsm --source run --eps 0.1 --subset 4 --no-checks --quiet",
    "attack run --attacks square --norm l2 --eps 1 --subset 4 --no-checks --quiet",
    "attack run --attacks fgsm-unclipped --norm l2 --eps 1 --subset 4 --quiet",
    "attack run --attacks universal --norm l2 --eps 1 --subset 4 --no-checks --quiet",
    "attack run --attacks autoattack --eps 0.1 --subset 2 --no-checks --quiet",
    "attack run --batchout-in-eval",
    "attack byclass --batchout-in-eval --quiet",
    "attack run --inference-batchout 2 --quiet",
    "attack run --inference-batchout 2 --batchout-in-eval --quiet",
    "attack stopped --attacks fgsm --eps 0.1 --quiet",
    "attack run --dataroot nowhere --attacks fgsm --eps 0.1 --subset 5 --no-checks --quiet",
    "attack run --iterations 0",
    "evaluate stopped",
    "evaluate run --batch-size 0",
    # studies and reports
    "run P1 --preset quick --dry-run --quiet",
    "run H1 --preset quick --dry-run --quiet",
    "attack run --attacks fgsm-normalised --norm l2 --eps 1 --subset 4 --quiet",
    f"train --dataset-train incomplete {SMALL}",
    f"train --dataset-train MNIST --dataroot twofold {SMALL}",
    "run T1 --preset quick --dry-run --quiet",
    "run bogus --preset quick --dry-run",
    "run --preset bogus",
    "report . --attacks --control bogus",
    "report . --control bogus",
    "report pictures --attacks",
    "list --tag pnn,bogus",
)
NEEDS = ("run", "mixed", "byclass", "colour", "stopped", "pictures")


def _picture_sets(folder: Path) -> None:
    """Sets of pictures that do not go together, and folders that hold several sets."""
    from faults.kinds import pictures
    from faults.world import pictures as make

    make(folder / "larger", size=9)
    make(folder / "others", classes=("cat", "cow"))
    make(folder / "one", classes=("cat",))
    write(folder, table(columns(8)))
    (folder / "nothing").mkdir()
    make(folder / "several")
    (folder / "set").rename(folder / "several/cifar10")
    write(folder, table(columns(8)))
    (folder / "idx").mkdir()
    pictures.idx(folder / "idx")
    (folder / "idx/set").rename(folder / "several/raw")
    make(folder / "several/cifar10-copy")
    make(folder / "twofold/mnist", classes=("0", "1"))
    (folder / "twofold/mnist/raw").mkdir()
    for path in (folder / "several/raw").iterdir():
        (folder / "twofold/mnist/raw" / path.name).write_bytes(path.read_bytes())
    (folder / "incomplete").mkdir()
    name = "train-images-idx3-ubyte"
    (folder / "incomplete" / name).write_bytes((folder / "several/raw" / name).read_bytes())
    (folder / "incomplete/t10k-labels-idx1-ubyte").write_bytes(b"x")
    make(folder / "wrong/cifar10")
    for name in ("mnist-a", "mnist-b"):
        make(folder / "copies" / name, classes=("0", "1"))


CONFIGURED = ("cosine", "longer", "begun")


def cases(count: int, seed: int) -> list[Case]:
    """Combinations for every command that trains, describes or attacks."""
    fixed = [_case(line) for line in LINES]
    return fill(fixed, _drawn, count, seed)


def _case(line: str) -> Case:
    short = line.replace(LENET, "...").replace("\x1b", "")
    prepare: Prepare = nothing
    if "--dataset" in line.replace(LENET, "") or "--dataroot" in line:
        prepare = _picture_sets
    elif made := next((name for name in CONFIGURED if f"--resume {name}" in line), ""):
        prepare = partial(_configured, made)
    return Case(short, shlex.split(line), NEEDS, prepare, seconds=60)


def _configured(name: str, folder: Path) -> None:
    """A run of three epochs that was stopped after one or in the second, or whose schedule depends on its length."""
    import torch

    from perturblab.checkpoint import digest

    (folder / name).mkdir()
    content = torch.load(folder / "run/checkpoint.pt", weights_only=True)
    content["config"] |= {"optimizer_schedule": "cosine"} if name == "cosine" else {"nepochs": 3}
    if name == "begun":
        stopped = torch.load(folder / "stopped/checkpoint.pt", weights_only=True)["state"]
        content["state"] |= {key: stopped[key] for key in ("step", "permutation", "reached")}
    content["digest"] = digest({key: value for key, value in content.items() if key != "digest"})
    torch.save(content, folder / name / "checkpoint.pt")
    shutil.copy(folder / "run/masks.safetensors", folder / name)


def _unread() -> Iterator[tuple[str, str]]:
    """Every net with every option that it does not read."""
    for net in NETS:
        for option in NET_OPTIONS:
            if option not in options_read(net) and option in VALUE:
                yield net, option


def _drawn(k: int, chance: random.Random) -> Case:
    net, option = chance.choice(list(_unread()))
    flag = "--" + option.replace("_", chance.choice("-_"))
    command = chance.choice(["describe", f"train {LENET} --out new"])
    line = shlex.split(f"{command} --net-type {net} {flag} {VALUE[option]}")
    return Case(f"{k}: {line[0]} {net} {flag}", line, NEEDS, may_succeed=False, seconds=60)
