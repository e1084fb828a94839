"""perturblab attack: a run under attack, and its table."""

import argparse
import os
import sys
from pathlib import Path

from perturblab.cli.arguments import select_fields
from perturblab.cli.output import print_json
from perturblab.records.attack_config import AttackConfig
from perturblab.records.config import validated
from perturblab.system.exit_codes import DONE


def attack(args: argparse.Namespace) -> int:
    """Attack a run, and print the table of its accuracies."""
    config = validated(AttackConfig, select_fields(args, AttackConfig))
    import torch

    from perturblab.cli.attack_table import points_table
    from perturblab.records.pictures.examples import examples_of
    from perturblab.records.run_points import RunPoints
    from perturblab.runs.attack.measure import attack_run
    from perturblab.system.memory import keep_freed_memory
    from perturblab.system.signals import unblock_stops
    from perturblab.system.terminal import Show

    unblock_stops()
    keep_freed_memory()
    if config.nthreads:
        torch.set_num_threads(config.nthreads)
    points = attack_run(Path(args.folder), config, Show(quiet=config.quiet or args.json))
    if args.json:
        print_json([point.summary() for point in points])
    else:
        print(points_table(points, terminal=sys.stdout.isatty() and os.environ.get("TERM") != "dumb"))
        if not RunPoints(Path(args.folder)).was_checked(points):
            print("not checked for masked gradients: flags come from the curves alone; leave --no-checks out")
        pictures = ["curves.svg", *(["examples.svg"] if examples_of(points)[1] else [])]
        print(f"pictures: {Path(args.folder, 'attacks')}/{', '.join(pictures)}")
    return DONE
