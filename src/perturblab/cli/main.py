"""The command line: it parses, calls and prints. Torch is imported only when a command needs it."""

import argparse
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from perturblab import __version__
from perturblab.cli import export, report, show
from perturblab.cli.arguments import Parser, add_fields, add_ignored, parse
from perturblab.cli.attack import attack
from perturblab.cli.config_file import add_config
from perturblab.cli.evaluate import evaluate
from perturblab.cli.nets import describe_net, list_nets
from perturblab.cli.train import train_net
from perturblab.errors import NonFiniteError, RankLostError, UserError, one_line
from perturblab.records.attack_config import AttackConfig
from perturblab.records.config import TrainConfig
from perturblab.system.exit_codes import DONE, INTERRUPTED, MISTAKE
from perturblab.system.processes import is_first, world_size

_LET_THE_FIRST_TELL = 2.0  # seconds


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

    models = command("models", list_nets, "List the nets by name.")
    models.add_argument("--json", action="store_true", help="as JSON")
    described = command("describe", describe_net, "Count the parameters and masks of a net; no data are needed.")
    add_fields(described, TrainConfig)
    add_ignored(described)
    add_config(described)
    described.add_argument("--image-size", "--image_size", metavar="H[,W]", default="32", help="pixels [32]")
    described.add_argument("--channels", metavar="C", default="3", help="channels of an image [3]")
    described.add_argument("--nclasses", metavar="K", default="10", help="number of classes [10]")
    described.add_argument("--json", action="store_true", help="as JSON")
    trained = command("train", train_net, "Train a net and leave a run folder.")
    add_fields(trained, TrainConfig)
    add_ignored(trained)
    add_config(trained)
    evaluated = command("evaluate", evaluate, "Count the correct test images of a run, each exactly once.")
    evaluated.add_argument("folder", metavar="RUN", help="a run's folder")
    evaluated.add_argument("--audit", action="store_true", help="the published metrics beside the exact one")
    evaluated.add_argument(
        "--batch-size", "--batch_size", metavar="B", help="nominal test batch of the audit [the run's]"
    )
    evaluated.add_argument("--dataroot", help="folder that is searched first for the data set [the run's]")
    evaluated.add_argument("--json", action="store_true", help="as JSON")
    attacked = command("attack", attack, "Attack a run, and check for masked gradients.")
    attacked.add_argument("folder", metavar="RUN", help="a run's folder")
    add_fields(attacked, AttackConfig)
    attacked.add_argument("--json", action="store_true", help="as JSON")
    show.add_catalogue_commands(command)
    export.add_commands(command)
    report.add_command(command)
    return parser


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, unless it has a handler already."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None, *, stop: Callable[[], bool] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.
        stop: polled between steps; True ends training or a study cleanly. By default Ctrl-C and SIGTERM end them; a
            function leaves the handlers of both unchanged.

    Returns:
        0 done, 1 a bug or a failed check, 2 an error that the user can correct, 130 interrupted and resumable.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only
    try:
        return _run(sys.argv[1:] if argv is None else argv, stop)
    except (UserError, NonFiniteError) as error:
        if is_first():
            print(f"perturblab: error: {one_line(str(error))}", file=sys.stderr)
        else:  # the same error on another rank, which torchrun ends as soon as the first has ended
            time.sleep(_LET_THE_FIRST_TELL)
        return MISTAKE
    except RankLostError as error:
        print(f"perturblab: stopped: {one_line(str(error))}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        if is_first():  # torchrun ends the others, also if the first has reported an error
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
            # The file is stdout; Python would flush it once more at its exit, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended (`| head`), which is not an error
            return DONE
        name = error.filename or "the output"
        print(
            f"perturblab: error: {one_line(str(name))} cannot be used ({error.strerror}); choose another",
            file=sys.stderr,
        )
        return MISTAKE


def _run(argv: Sequence[str], stop: Callable[[], bool] | None) -> int:
    try:
        with nullcontext() if stop else _terminable():
            args = parse(_parser(), argv)
            args.stop = stop
            if world_size() > 1 and args.command not in ("train", "evaluate"):
                raise UserError(f"perturblab {args.command} runs in a single process; start it without torchrun")
            code: int = args.run(args)
        return code
    finally:
        sys.stdout.flush()  # a full disk or a closed pipe must fail here, not at the exit of the process
