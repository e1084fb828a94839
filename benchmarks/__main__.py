"""``make bench``: one table from one run, and the same as JSON."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import attacks
from benchmarks.accelerator import throughput
from benchmarks.cases import CASES, GROWTH, Layer
from benchmarks.equal import equal
from benchmarks.loop import overhead
from benchmarks.rates import rates
from benchmarks.worker import Worker, alternate
from perturblab.records import environment
from perturblab.records.markdown import markdown_table

# Seconds and GB of a step of the published code itself, adapted to torch 2.13, on another machine with two cores (Intel
# with AMX): the reference's steps are compared with them.
ELSEWHERE = {"experiment 6": (11.9, 5.8), "experiment 8": (10.7, 5.2), "experiment 4": (2.2, None)}


def main() -> int:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="alternating repetitions of a case")
    parser.add_argument("--loop-pairs", type=int, default=40, help="pairs of ten steps, ours and bare")
    parser.add_argument("--attack-pairs", type=int, default=15, help="repetitions of an attack's evaluation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {
        "environment": environment.environment(
            threads=args.threads, precision="as named", compile="as named", device=device
        ).model_dump(),
        "rates": rates(device),
        "cases": {},
    }
    for case in CASES:
        if args.only in case:
            say(f"{case} ...")
            result["cases"][case] = alternate(case, ways(case), device, args.threads, args.pairs)
    if not args.only:
        say("growth with the number of masks ...")
        result["growth"] = growth(device, args.threads, args.pairs)
        say("our loop against a bare one ...")
        result["loop"] = overhead(args.loop_pairs, args.threads)
        say("attacks beside foolbox, ART and bare passes ...")
        result["attacks"] = attacks.compare(args.attack_pairs, args.threads)
        say("the same results? ...")
        result["equal"] = equal()
        say("perturblab --help ...")
        result["help"] = help_seconds()
    if device == "cuda":
        say("images a second at large batches ...")
        result["accelerator"] = throughput(device)
    sys.stdout.write(table(result) + "\n")
    if not args.only:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{device}-{args.threads}-threads.json"
        path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        say(f"written to {path}")
    return 0


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"{text}\n")


def ways(case: str) -> list[str]:
    """List the ways to compute a case: a layer in one precision, a step in all of them."""
    return ["reference", "fp32"] if isinstance(CASES[case], Layer) else ["reference", "fp32", "bf16"]


def growth(device: str, threads: int, pairs: int) -> dict[str, Any]:
    """Measure the layer with more and more masks, all sizes in turn."""
    workers = {nmasks: Worker(Layer(nmasks), "fp32", device, threads) for nmasks in GROWTH}
    for _ in range(pairs):
        for worker in workers.values():
            worker.repeat(1)
    return {str(nmasks): {"times": w.times, **w.end()} for nmasks, w in workers.items()}


def help_seconds(pairs: int = 15) -> dict[str, list[float]]:
    """Time the help of the command line and the bare interpreter, in turn."""
    commands = {"help": ["-m", "perturblab", "--help"], "bare": ["-c", "pass"]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(pairs):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    return times


def table(result: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    lines = [f"{name}: {value:,.0f}" for name, value in result["rates"].items()]
    processor = result["environment"]["processor"]
    lines += [f"{processor['model']}, {result['environment']['threads']} threads", ""]
    header = ["case", "way", "median, s (range)", "faster", "peak, MB", "extra peak, MB", "of the reference's"]
    cases = result["cases"].items()
    rows = [_row(case, way, values, by_way["reference"]) for case, by_way in cases for way, values in by_way.items()]
    lines += [markdown_table(header, rows, "llrrrrr"), "", *_beside(result["cases"])]
    if "growth" in result:
        one = statistics.median(result["growth"]["1"]["times"])
        rows = []
        for nmasks, measured in result["growth"].items():
            growing = f"{statistics.median(measured['times']) / one:.2f}"
            rows.append([nmasks, _spread(measured["times"]), growing, f"{measured['extra'] / 2**20:,.0f}"])
        header = ["masks a channel", "median, s (range)", "times one mask", "extra peak, MB"]
        lines += ["", markdown_table(header, rows, "rrrr")]
        loop, (low, high) = result["loop"], result["loop"]["interval"]
        lines += [
            "",
            f"our loop / a bare step ({loop['net']}): median {loop['median']:.3f} [{low:.3f}, {high:.3f}] "
            f"over {loop['pairs']} pairs; augmentation takes {100 * loop['augmentation share']:.1f} % of a step",
            f"perturblab --help: {statistics.median(result['help']['help']):.3f} s, "
            f"the bare interpreter {statistics.median(result['help']['bare']):.3f} s",
        ]
        header = ["net, seed", "loss, first 50 steps: fast", "from weights changed by 1e-7", "correct, fast"]
        rows = []
        for run in result["equal"]:
            counts = (str(run[way]) for way in ("fast", "published", "changed"))
            rows.append([f"{run['net']}, {run['seed']}", f"{run['gap']:.1e}", f"{run['drift']:.1e}", *counts])
        lines += ["", attacks.table(result["attacks"])]
        lines += ["", markdown_table([*header, "published", "changed"], rows)]
    if "accelerator" in result:
        sixth = result["accelerator"]["experiment 6"]
        rates = {
            **result["accelerator"]["images a second"],
            "experiment 6, ours at batch 256": sixth["ours"],
            f"experiment 6, reference at batch {sixth['batch']}": sixth["reference"],
        }
        rows = [[name, _rate(rate)] for name, rate in rates.items()]
        lines += ["", markdown_table(["batch 512, bf16, compiled", "images/s"], rows)]
    return "\n".join(lines)


def _beside(cases: dict[str, Any]) -> list[str]:
    """Compare the reference's steps with those of the published code on another machine."""
    lines = []
    for name, (seconds, memory) in ELSEWHERE.items():
        for case, by_way in cases.items():
            if case.startswith(name):
                reference = by_way["reference"]
                median = statistics.median(reference["times"])
                text = f"reference, {case}: {median:.1f} s, {reference['peak'] / 1e9:.1f} GB; "
                text += f"the published code elsewhere {seconds} s" + (f", {memory} GB" if memory else "")
                lines.append(f"{text}: {100 * (median / seconds - 1):+.0f} %")
    return lines


def _rate(images: float | None) -> str:
    return "does not fit" if images is None else f"{images:,.0f}"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.4f} ({min(times):.4f} to {max(times):.4f})"


def _row(case: str, way: str, measured: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    faster = statistics.median([r / t for r, t in zip(reference["times"], measured["times"], strict=True)])
    memory = "extra" if isinstance(CASES[case], Layer) else "peak"
    sizes = [f"{measured[size] / 2**20:,.0f}" for size in ("peak", "extra")]
    share = f"1/{reference[memory] / max(measured[memory], 1):.1f}"
    return [case, way, _spread(measured["times"]), f"{faster:.1f}", *sizes, share]


if __name__ == "__main__":
    sys.exit(main())
