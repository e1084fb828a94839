"""The dispute in three minutes: a 3x3 net, a 1x1-only net and a perturbative net, matched in parameters, on digits.

`make demo` runs it. What is finished is not run again.
"""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from perturblab import records, report
from perturblab.config import TrainConfig
from perturblab.machine import keep_freed_memory
from perturblab.progress import Show

FOLDER = Path("runs/demo")
SEEDS = (1, 2, 3)
CONTROL = "perturb_resnet18, 28 filters, 1x1 only"
# 274,800 trainable parameters against 274,942 of the two others.
ARMS = {
    "3x3": {"net_type": "resnet18", "nfilters": 10},
    "1x1": {"net_type": "perturb_resnet18", "nfilters": 28, "first_filter_size": 3, "filter_size": 1},
    "noise": {"net_type": "perturb_resnet18", "nfilters": 28, "first_filter_size": 3, "filter_size": 0, "level": 0.5},
}
RECIPE = {"dataset_train": "digits", "batch_size": 32, "nepochs": 12, "learning_rate": 1e-2}


def run_demo(folder: Path, show: Show) -> list[records.Record]:
    """Train every arm with every seed, where its record is not there yet.

    Args:
        folder: where the runs lie.
        show: where progress goes.

    Returns:
        The record of every run.
    """
    planned = {
        folder / f"{arm}-seed{seed}": {**RECIPE, **given, "manual_seed": seed}
        for seed in SEEDS
        for arm, given in ARMS.items()
    }
    missing = [path for path, given in planned.items() if not _is_done(path / "record.json", given)]
    for number, path in enumerate(missing, 1):
        show.say(f"run {number}/{len(missing)}: {path.name}")
        from perturblab import execution, runs  # torch, which takes longer than all the rest when nothing is missing

        execution.execute(runs.open_run(TrainConfig.model_validate(planned[path]), path, show), show)
    return [records.load(path / "record.json") for path in planned]


def _is_done(path: Path, given: dict[str, Any]) -> bool:
    """Whether the record is there, and of these settings: an older demonstration had others."""
    if not path.exists():
        return False
    record = records.load(path)
    return given.items() <= {**record.config, "manual_seed": record.seed}.items()


def main() -> int:
    """Run the demonstration and print its table."""
    began = time.monotonic()
    keep_freed_memory()
    try:
        found = run_demo(FOLDER, Show())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; make demo goes on with the runs that are not done\n")
        return 130
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(report.rich_table(found, CONTROL))
    console.print(
        f"The 597 test images were each counted exactly once, after the last epoch. {time.monotonic() - began:.0f} s; "
        f"records: {FOLDER}/*/record.json, curves: {FOLDER}/*/progress.svg; to run it again, delete {FOLDER}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
