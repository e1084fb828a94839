"""The command line: it parses, calls and prints. Nothing here imports torch before a command needs it."""

import argparse
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturblab import __version__, cli_catalogue, cli_export, cli_report
from perturblab.arguments import Parser, add_fields, add_ignored, given, integers, parsed
from perturblab.errors import NonFiniteError, RankLostError, UserError, one_line
from perturblab.records.config import AttackConfig, TrainConfig, validated
from perturblab.system.files import is_begun
from perturblab.system.processes import is_first, launcher, world_size
from perturblab.system.signals import asked_to_stop

if TYPE_CHECKING:
    from perturblab.records.record import Record
    from perturblab.runs.run import Run
    from perturblab.system.terminal import Show
    from perturblab.training.ranks import Ranks

DONE, BUG, MISTAKE, INTERRUPTED = 0, 1, 2, 130

_LET_THE_FIRST_TELL = 2.0  # seconds

# What a second call for the same run may say anew.
_MAY_CHANGE = {"nepochs", "dataroot", "nthreads", "device", "quiet", "debug", "log"}


def _parser() -> Parser:
    parser = Parser(
        prog="perturblab",
        allow_abbrev=False,
        description="Networks that perturb their features: trained, evaluated and re-measured exactly.",
    )
    parser.add_argument("--version", action="version", version=f"perturblab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        added: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    models = command("models", _models, "List the nets by name.")
    models.add_argument("--json", action="store_true", help="as JSON")
    described = command("describe", _describe, "Count a net from its modules; no data are needed.")
    add_fields(described, TrainConfig)
    add_ignored(described)
    _add_config(described)
    described.add_argument("--image-size", "--image_size", metavar="H[,W]", default="32", help="pixels [32]")
    described.add_argument("--channels", metavar="C", default="3", help="channels of an image [3]")
    described.add_argument("--nclasses", metavar="K", default="10", help="number of classes [10]")
    described.add_argument("--json", action="store_true", help="as JSON")
    trained = command("train", _train, "Train a net and leave a run folder.")
    add_fields(trained, TrainConfig)
    add_ignored(trained)
    _add_config(trained)
    evaluated = command("evaluate", _evaluate, "Count a run's correct test images, each exactly once.")
    evaluated.add_argument("folder", metavar="RUN", help="a run's folder")
    evaluated.add_argument("--audit", action="store_true", help="the published metrics beside the exact one")
    evaluated.add_argument(
        "--batch-size", "--batch_size", metavar="B", help="nominal test batch of the audit [the run's]"
    )
    evaluated.add_argument("--dataroot", help="where the data set is looked for first [the run's]")
    evaluated.add_argument("--json", action="store_true", help="as JSON")
    attacked = command("attack", _attack, "Attack a run, and check that no masked gradient passes for a defence.")
    attacked.add_argument("folder", metavar="RUN", help="a run's folder")
    add_fields(attacked, AttackConfig)
    attacked.add_argument("--json", action="store_true", help="as JSON")
    cli_catalogue.add_commands(command)
    cli_export.add_commands(command)
    cli_report.add_command(command)
    return parser


def _add_config(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags, name: value; those given here win")


def _training(args: argparse.Namespace) -> TrainConfig:
    """The flags of a file and, over them, those of the command line."""
    from perturblab.config_file import flags_in

    in_file = {} if args.config is None else flags_in(Path(args.config), TrainConfig)
    return validated(TrainConfig, given(argparse.Namespace(**in_file | vars(args)), TrainConfig))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _models(args: argparse.Namespace) -> int:
    from perturblab.models import NETS, options_read

    nets = [{"net": name, "about": net.about, "options": sorted(options_read(name))} for name, net in NETS.items()]
    if args.json:
        _print_json(nets)
    else:
        print("\n".join(f"{net['net']:17} {net['about']}" for net in nets))
    return DONE


def _describe(args: argparse.Namespace) -> int:
    config = _training(args)
    size = integers(args.image_size, "--image-size", (1, 2))
    channels, nclasses = (integers(args.channels, "--channels")[0], integers(args.nclasses, "--nclasses")[0])
    import torch

    from perturblab.models import Task, describe
    from perturblab.runs.build import build_net
    from perturblab.system.terminal import Show

    task = Task(nclasses, channels, (size[0], size[-1]))
    with torch.device("meta"):
        net = build_net(config, task, seed=config.manual_seed, warn=Show().warn)
    try:
        described = describe(net, task, config.net)
    except RuntimeError as error:  # more values in a layer than 64 bits can count
        raise UserError(f"--image-size {args.image_size} is beyond what can be counted; use a smaller one") from error
    if args.json:
        _print_json(described)
    else:
        print(_description(described))
    return DONE


def _description(described: dict[str, Any]) -> str:
    lines = [f"{'layer':40} {'type':18} {'output':>16} {'parameters':>12} {'masks':>12} {'MACs':>14}"]
    for row in described["layers"]:
        shape = "x".join(map(str, row["shape"]))
        numbers = f"{row['parameters']:>12,} {row['masks']:>12,} {row['macs']:>14,}"
        lines.append(f"{row['name']:40} {row['type']:18} {shape:>16} {numbers}")
    lines.append(
        f"{described['net']}: {described['trainable']:,} trainable, {described['frozen']:,} frozen, "
        f"{described['masks']:,} mask values, {described['macs']:,} MACs an image, "
        f"receptive field {described['receptive_field']} pixels"
    )
    return "\n".join(lines)


def _train(args: argparse.Namespace) -> int:
    config = _training(args)
    folder = Path(config.resume) if config.resume else _new_folder(config) if is_first() else None
    import torch

    from perturblab.runs import logs
    from perturblab.runs.open import own_device
    from perturblab.system.memory import keep_freed_memory
    from perturblab.system.signals import hear_stops
    from perturblab.training import ranks

    hear_stops()
    logs.check(config.log or ())
    keep_freed_memory()
    if config.nthreads:
        torch.set_num_threads(config.nthreads)
    if config.debug:
        _show_perturbations()
    own = config.resume is not None and "device" not in config.model_fields_set
    with ranks.joined(own_device(folder) if own and folder else config.device) as us:
        # Rank 0 names the folder: the name may hold the time, and the others would find it in use.
        place = next(found for found in us.every(folder) if found is not None)
        return _train_in(config, place, us, args.stop)


def _train_in(config: TrainConfig, folder: Path, ranks: "Ranks", stop: Callable[[], bool] | None) -> int:
    from perturblab.runs import open, train
    from perturblab.system.terminal import Show

    show = Show(quiet=config.quiet)
    with ranks.agreed():
        if config.resume:
            run = open.resume_run(folder, _changes(config, folder), show, ranks)
        else:
            run = open.open_run(config, folder, show, ranks)
    open.check_ranks(run)
    _introduce(run, show)
    resume = f"{launcher()} train --resume {folder}"
    try:
        with asked_to_stop(stop, once=True) as asked:
            record = train.execute(run, show, asked)
    except RankLostError as error:
        raise RankLostError(f"rank {ranks.rank}: {error}; go on from the last checkpoint with: {resume}") from error
    if record is None:
        state = run.state
        show.warn(f"stopped in epoch {state.epoch + 1} after step {state.step} of {run.steps}; go on with: {resume}")
        return INTERRUPTED
    if ranks.first:
        print(_result(record, folder))
    return DONE


def _new_folder(config: TrainConfig) -> Path:
    import datetime

    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = Path(config.out or f"runs/{config.net}-seed{config.manual_seed}-{stamp}")
    if folder.exists() and (not folder.is_dir() or is_begun(folder)):
        raise UserError(
            f"--out {folder} exists and is never overwritten; choose another, or go on with --resume {folder}"
        )
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise UserError(f"--out {folder} cannot be made, {above} is no folder that can be written; choose another")
    return folder


def _changes(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """What a resumed run takes from this call; anything else that differs is refused."""
    from perturblab.runs import open

    own = open.saved_config(folder)
    said = {name: getattr(config, name) for name in config.model_fields_set - {"resume"}}
    other = sorted(name for name, value in said.items() if name not in _MAY_CHANGE and value != getattr(own, name))
    if other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        raise UserError(f"{flags} given, and {folder} was started with another value; drop it, or start a new run")
    if "nepochs" in said:
        _check_longer(config, own)
    return {name: value for name, value in said.items() if name in _MAY_CHANGE}


def _check_longer(config: TrainConfig, own: TrainConfig) -> None:
    if own.optimizer_schedule in ("cosine", "onecycle") and config.nepochs != own.nepochs:
        raise UserError(
            f"--nepochs cannot change: the {own.optimizer_schedule} schedule of this run depends on it; start a new run"
        )


def _show_perturbations() -> None:
    import logging

    from perturblab.layers.kernels import debug_log

    debug_log.setLevel(logging.DEBUG)
    debug_log.addHandler(logging.StreamHandler(sys.stderr))


def _introduce(run: "Run", show: "Show") -> None:
    images, splits = run.images, (run.training, run.validation or (), run.images.test)
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    show.say("data: {}, {:,} training, {:,} validation, {:,} test images".format(images.display, *map(len, splits)))
    show.say(f"classes in order: {', '.join(images.classes)}")
    several = "" if run.ranks.alone else f", {run.ranks.world} ranks with batch norm statistics of their own"
    show.say(f"net: {run.config.net}, {trainable:,} trainable parameters, on {run.device}{several}")
    show.say(f"run: {run.folder}")
    show.say("its last bits depend on: {}".format(", ".join(_bits(run))))


def _bits(run: "Run") -> list[str]:
    import torch

    threads = torch.get_num_threads()
    compiled = "compiled" if run.config.compile == "on" else "not compiled"
    return [run.config.precision, compiled, f"{threads} thread{'s' * (threads > 1)}", str(run.device)]


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, where nothing else is said about it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _result(record: "Record", folder: Path) -> str:
    from perturblab.stats import wilson

    last = record.counts.last
    low, high = wilson(last.correct, last.total)
    lines = [
        f"test accuracy after epoch {last.epoch + 1}: {last.accuracy:.2f} % "
        f"({last.correct}/{last.total}, 95 % Wilson interval [{low:.2f}, {high:.2f}])"
    ]
    if record.audit:
        audit = record.audit
        lines.append(
            f"the published metrics for these answers: mean over batches {audit.last.batch_mean:.2f} %, truncated "
            f"{audit.last.batch_mean_truncated:.2f} %, smoothed {audit.last.smoothed:.2f} %; best smoothed epoch "
            f"{audit.best_smoothed.smoothed:.2f} %, exact in that epoch {audit.best_smoothed.accuracy:.2f} %"
        )
    lines.append(f"record: {folder / 'record.json'}, curves: {folder / 'progress.svg'}")
    return "\n".join(lines)


def _evaluate(args: argparse.Namespace) -> int:
    batch = integers(args.batch_size, "--batch-size")[0] if args.batch_size is not None else None
    from perturblab.runs.evaluate import evaluate_run
    from perturblab.runs.open import own_device
    from perturblab.system.terminal import Show
    from perturblab.training.ranks import joined

    with joined(own_device(Path(args.folder))) as ranks:
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
        _print_json(result)
    else:
        print(_evaluation(result))
    return DONE


def _evaluation(result: dict[str, Any]) -> str:
    exact, (low, high) = result["exact"], result["wilson"]
    percent = 100 * exact["correct"] / exact["total"]
    lines = [
        f"exact: {percent:.2f} % ({exact['correct']}/{exact['total']}), 95 % Wilson interval [{low:.2f}, {high:.2f}]"
    ]
    if "smoothed" in result:
        lines += [
            f"mean over {result['n_batches']} batches of nominal size: {result['batch_mean']:.2f} %",
            f"the same with the integer truncation of PyTorch before 1.3: {result['batch_mean_truncated']:.2f} %",
            f"0.7/0.3 smoothed over the batches in test order: {result['smoothed']:.2f} %",
        ]
    return "\n".join(lines)


def _attack(args: argparse.Namespace) -> int:
    config = validated(AttackConfig, given(args, AttackConfig))
    import torch

    from perturblab.cli_attack_table import table
    from perturblab.records.pictures.examples import examples_of
    from perturblab.runs.attack.measure import attack_run, was_checked
    from perturblab.system.memory import keep_freed_memory
    from perturblab.system.signals import hear_stops
    from perturblab.system.terminal import Show

    hear_stops()
    keep_freed_memory()
    if config.nthreads:
        torch.set_num_threads(config.nthreads)
    points = attack_run(Path(args.folder), config, Show(quiet=config.quiet or args.json))
    if args.json:
        _print_json([point.summary() for point in points])
    else:
        print(table(points, terminal=sys.stdout.isatty() and os.environ.get("TERM") != "dumb"))
        if not was_checked(Path(args.folder), points):
            print("not checked for masked gradients: flags come from the curves alone; leave --no-checks out")
        pictures = ["curves.svg", *(["examples.svg"] if examples_of(points)[1] else [])]
        print(f"pictures: {Path(args.folder, 'attacks')}/{', '.join(pictures)}")
    return DONE


def main(argv: Sequence[str] | None = None, *, stop: Callable[[], bool] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.
        stop: asked between steps; True ends training or a study cleanly. By default Ctrl-C and SIGTERM do; with a
            function the handlers of both are left alone.

    Returns:
        0 done, 1 a bug or a failed check, 2 the user's mistake, 130 interrupted and resumable.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only
    try:
        return _run(sys.argv[1:] if argv is None else argv, stop)
    except (UserError, NonFiniteError) as error:
        if is_first():
            print(f"perturblab: error: {one_line(str(error))}", file=sys.stderr)
        else:  # it has met the same one, and torchrun ends it as soon as another rank has ended
            time.sleep(_LET_THE_FIRST_TELL)
        return MISTAKE
    except RankLostError as error:
        print(f"perturblab: stopped: {one_line(str(error))}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        if is_first():  # the others are ended by torchrun, also when the first has told a mistake
            print("perturblab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (MemoryError, RuntimeError, ImportError) as error:
        from perturblab.system.memory import out_of_memory

        if (reason := out_of_memory(error)) is None:
            raise
        print(f"perturblab: error: {reason}; free some, or use a smaller net", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        if error.filename is None:
            # It is stdout; Python would flush it once more at its exit, and complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output went away (`| head`): nothing is wrong
            return DONE
        what = error.filename or "the output"
        print(
            f"perturblab: error: {one_line(str(what))} cannot be used ({error.strerror}); choose another",
            file=sys.stderr,
        )
        return MISTAKE


def _run(argv: Sequence[str], stop: Callable[[], bool] | None) -> int:
    try:
        with nullcontext() if stop else _terminable():
            args = parsed(_parser(), argv)
            args.stop = stop
            if world_size() > 1 and args.command not in ("train", "evaluate"):
                raise UserError(f"perturblab {args.command} is a single process; run it without torchrun")
            code: int = args.run(args)
        return code
    finally:
        sys.stdout.flush()  # a full disk or a closed pipe must show here, not at the exit of the process
