"""The command `evaluate`: the exact count of a run's test images."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.arguments import integers
from perturblab.cli.output import print_json
from perturblab.system.exit_codes import DONE

if TYPE_CHECKING:
    from perturblab.runs.evaluate import Evaluation


def evaluate(args: argparse.Namespace) -> int:
    """Count a run's correct test images, and print the exact accuracy."""
    batch = integers(args.batch_size, "--batch-size")[0] if args.batch_size is not None else None
    from perturblab.runs.evaluate import evaluate_run
    from perturblab.runs.process import join_ranks
    from perturblab.system.terminal import Show

    with join_ranks("auto", Path(args.folder)) as ranks:
        result = evaluate_run(
            Path(args.folder),
            Show(quiet=args.json),
            audited=args.audit,
            batch_size=batch,
            dataroot=args.dataroot,
            ranks=ranks,
        )
    if not ranks.first:
        return DONE
    if args.json:
        print_json(result)
    else:
        print(_evaluation(result))
    return DONE


def _evaluation(result: "Evaluation") -> str:
    from perturblab.stats import brackets

    exact, (low, high) = result["exact"], result["wilson"]
    percent = 100 * exact["correct"] / exact["total"]
    lines = [
        f"exact: {percent:.2f} % ({exact['correct']}/{exact['total']}), 95 % Wilson interval {brackets((low, high))}"
    ]
    if "smoothed" in result:
        lines += [
            f"mean over {result['n_batches']} batches of nominal size: {result['batch_mean']:.2f} %",
            f"the same with the integer truncation of PyTorch before 1.3: {result['batch_mean_truncated']:.2f} %",
            f"0.7/0.3 smoothed over the batches in test order: {result['smoothed']:.2f} %",
        ]
    return "\n".join(lines)
