"""Bad command lines: mistyped, garbled, cut, doubled, and with values that are easily taken for something else."""

import random
import shlex
from collections.abc import Sequence
from pathlib import Path

from faults.case import Case, fill, nothing
from faults.world import TINY
from perturblab.report.measured import FAILED
from perturblab.report.tables import BEGIN, END

GOOD = (
    "models --json",
    "describe --net-type lenet --nfilters 2 --image-size 28,28 --channels 1 --nclasses 10 --json",
    f"train {shlex.join(TINY)} --optim-method Adam --lr 1e-3 --momentum 0.9 --out new",
    f"train {shlex.join(TINY)} --defence batchout --batchout-eta 0.1 --batchout-k 0.5 --classes 0,1,2 --out new",
    f"train {shlex.join(TINY)} --defence pgd --defence-eps 8/255 --defence-steps 2 --seed 3 --out new",
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
VALUES = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1.5",
        "1e3",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "99999999999999999999",
        "0x10",
        "1_0",
    ),
    *(
        "true",
        "None",
        "''",
        "a,b",
        ",",
        "1,,2",
        "1,2,3",
        "8/0",
        "/",
        "8/255/2",
        "U[0",
        "U[1,0]",
        "0.3:0.1",
        ":",
        ";;",
        "²",
    ),
    *("٣", "é", "\x1b[31mred", "a\nb", "\x07", "\u202e", "\ud800", "../..", "/", ".", "~", "/dev/null", "/dev/zero"),
    *("/proc/self/mem", "x" * 3000, "{}", "$(id)", "%s%s", "run", "run/record.json", "pictures", "digits", "CIFAR11"),
    *("resnet", "Lenet", "all-after:nothing", "cuda:99", "mps", "-5", "2147483648", "9223372036854775808", "no\0ne"),
)
FIXED = (
    *("", "-h --nothing", "bogus", "TRAIN", "--json models", "-", "--", "-- models", "models --", "models extra"),
    *("train train", "evaluate", "evaluate run run", "attack", "show", "run --seeds", "report a b", "train --nepochs"),
    *("train --nepochs=", "train --audit=yes", "train --no-nepochs 3", "train --nepoch 3", "train -z", "train @file"),
    *("evaluate nowhere", "evaluate run/record.json", "evaluate /dev/null", "evaluate pictures", "attack pictures"),
    *(
        "attack nowhere",
        "train --resume nowhere",
        "train --resume pictures",
        "train --resume run --out new",
        "show K5555",
    ),
    *("show ''", "run K5555", "run --preset bogus", "run K4 --seeds 0", "run K4 --jobs 0", "list --tag bogus"),
    *("list --tag ''", "run K4 --results run/record.json", "run --preset quick K4 --results /proc/nothing --quiet"),
    *("report nowhere", "report run --control bogus", "report run --into nowhere", "report run --into run"),
    *(
        "report run --into run/weights.safetensors",
        "report run/record.json",
        "describe --image-size 0",
        "train --device x",
    ),
    *("describe --nfilters 2000000000", "describe --image-size 2000000000", "describe --nclasses 2000000000"),
    *("describe --channels 2000000000 --nfilters 2000000000", "describe --net-type lenet --image-size 1"),
    *(
        "describe --net-type lenet --image-size 100000,1",
        "train --out '' --dataset-train digits",
        "train --config nowhere",
    ),
    *(
        "train --out run --dataset-train digits",
        "train --out run/record.json/x",
        "train --out /proc/x --dataset-train digits",
    ),
    *(
        "train --dataset-train nowhere",
        "train --dataset-train CIFAR10",
        "train --dataset-train ./nowhere",
        "report '\x1b[1m'",
    ),
    *("attack run --eps 8/0", "attack run --attacks ''", "attack run --subset 0", "attack run --source nowhere"),
    *("attack run --attacks transfer-fgsm --source nowhere", "attack run --eps ''", "attack run --iterations 0"),
    *(
        "evaluate run --batch-size 0",
        "evaluate run --dataroot nowhere --batch-size 3.5",
        "describe --net-type ../lenet",
    ),
    f"train {shlex.join(TINY)} --lr 1e30 --out new",
    f"train {shlex.join(TINY)} --nfilters 2147483647 --out new",
    f"train {shlex.join(TINY)} --batch-size 2147483647 --code or --out new",
    f"train {shlex.join(TINY)} --out {'x' * 300}",
    f"train {shlex.join(TINY)} --out {'x/' * 3000}y",
    "export run",
    "export run --onnx net.onnx --push user/net",
    "export run --onnx pictures",
    "export run --onnx name",
    "export run --onnx run/record.json",
    "export run --onnx run/weights.safetensors",
    "export run --onnx there.onnx",
    "export run --pretrained mixed",
    "export run --pretrained mixed --push user/net --quiet",
    "export nowhere --pretrained new",
    "export redrawn --onnx new.onnx --quiet",
    "report run --attacks --groups",
    "report run --markdown --into nowhere.md",
    "report run --markdown --into without.md",
    "report run --markdown --into swapped.md",
    "report run --markdown --tag bogus",
    "report run --groups --control bogus",
    "report failed",
    "run K4 --on bogus --quiet",
    "run K4 --cpus 2 --quiet",
    "run K4 --on ray --gpus 1.5 --quiet",
    "describe --net-type lbcnet --depth 2147483647",
    "describe --net-type bottleneck_resnet --blocks 2147483647",
)


def cases(count: int, seed: int) -> list[Case]:
    """Bad command lines of every command."""
    fixed = [_case(line or "nothing", shlex.split(line)) for line in FIXED]
    fixed += [
        _case(f"{k}: a byte that is no text", [*shlex.split(line)[:1], "\udcff"]) for k, line in enumerate(GOOD[::3])
    ]
    return fill(fixed, _drawn, count, seed)


def _case(name: str, argv: Sequence[str]) -> Case:
    needs = ("run", "mixed", "pictures", *(["redrawn"] if "redrawn" in argv else []))
    prepare = {"report": _documents, "export": _taken}.get(argv[0] if argv else "", nothing)
    return Case(name[:80], argv, needs, prepare, seconds=60)


def _documents(folder: Path) -> None:
    """Texts without the markers of a table, and with them in the wrong order; a failure of a study that is none."""
    (folder / "without.md").write_text("a text\n")
    (folder / "swapped.md").write_text(f"{END}\n{BEGIN}\n")
    (folder / "failed").mkdir()
    (folder / "failed" / FAILED).write_text("[]")


def _taken(folder: Path) -> None:
    """A file that an export must not replace."""
    (folder / "there.onnx").write_text("no net")


def _drawn(k: int, chance: random.Random) -> Case:
    argv = shlex.split(GOOD[k % len(GOOD)])
    for _ in range(chance.randrange(1, 3)):
        what, argv = _garbled(argv, chance)
    return _case(f"{k}: {argv[0] if argv else ''}, {what}", argv)


def _garbled(argv: list[str], chance: random.Random) -> tuple[str, list[str]]:
    spot = chance.randrange(len(argv)) if argv else 0
    before, word, after = argv[:spot], argv[spot] if argv else "", argv[spot + 1 :]
    match chance.randrange(7):
        case 0 if not word.startswith(("--nepochs", "--subset", "--no-checks", "--dry")):
            return f"without {word}", [*before, *after]
        case 1:
            return f"{word} twice", [*before, word, word, *after]
        case 2:
            letters = list(word)
            chance.shuffle(letters)
            return f"{word} shuffled", [*before, "".join(letters), *after]
        case 3:
            at = chance.randrange(len(word) + 1)
            return f"{word} with a letter more", [
                *before,
                word[:at] + chance.choice("-_=,.x0 \t\x1b") + word[at:],
                *after,
            ]
        case 4:
            return f"{word} in capitals", [*before, word.swapcase(), *after]
    value = chance.choice(VALUES)
    if word.startswith("--"):
        return f"{word} and {value[:20]!a}", [*before, word, value, *after[1:]]
    return f"{value[:20]!a} for {word}", [*before, value, *after]
