"""A jumping clock, and too little memory."""

import random
import resource
import signal
import time
from collections.abc import Callable

from faults.child import ending
from faults.runs import (
    EVERY,
    TINY,
    Straight,
    World,
    check_one_line,
    differences,
    expect_exit,
    finish_run,
    incomplete_files,
    next_command,
)
from faults.table import Row
from perturblab.records import store

DAY = 86400.0
LARGE = "--net-type perturb_resnet18 --nfilters 8 --first_filter_size 3 --train-size 1000 --batch-size 1000"


def clock(world: World, run: Straight, each: int) -> Row:
    """Let the clock jump by up to ten years at every call; file dates are then in the past and the future."""
    row = Row("the clock jumps by years at every look, forwards and back")
    for number in range(each):
        folder, jumps = world.new("clock"), random.Random(number)

        def jump(jumps: random.Random = jumps) -> None:
            real, real_ns = time.time, time.time_ns
            time.time = lambda: real() + jumps.uniform(-3650, 3650) * DAY
            time.time_ns = lambda: real_ns() + int(jumps.uniform(-3650, 3650) * DAY) * 10**9

        with ending(world.start(next_command(run, folder), every=EVERY, before=jump)) as child:
            child.until(lambda board: board.saved >= 1)
            child.send(signal.SIGKILL)
            child.wait()
        wrong = incomplete_files(folder) or finish_run(world, run, folder, every=EVERY, before=jump)
        if not wrong and not 0 < store.load_record(folder / "record.json").seconds < 600:
            wrong = [f"its record has {store.load_record(folder / 'record.json').seconds} s"]
        row.judge(wrong)
    return row


def _limited(more: int) -> Callable[[], None]:
    def limit() -> None:
        with open("/proc/self/status") as status:
            now = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) << 10
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))

    return limit


def memory(world: World, each: int) -> Row:
    """Limit memory to many sizes: the run ends well, or one line names the batch size; a smaller batch fits."""
    row = Row("memory limited (RLIMIT_AS), from nothing to enough")
    flags = [*TINY.split(), *LARGE.split(), "--nepochs", "2"]
    folder = world.new("large")
    expect_exit(world.start(["train", *flags, "--out", str(folder)]))
    run, in_training = Straight(flags, folder, 0, 0.0), 0
    for number in range(each):
        tried, more = world.new("limited"), int(2 ** (20 + 10 * number / max(each - 1, 1)))  # 1 MB to 1 GB
        with ending(world.start(next_command(run, tried), before=_limited(more))) as child:
            child.wait()
        if child.code == 0:
            row.judge(differences(tried, folder))
            continue
        if child.code == -signal.SIGSEGV and not incomplete_files(tried):
            # In the backward pass of a plain convolution PyTorch does not check an allocation.
            row.tried += 1
            row.known.append("PyTorch itself crashed in a training step; no file was torn")
            continue
        trained = child.board.first >= 0
        in_training += trained
        wrong = check_one_line(child)
        word = "out of memory" if not trained else "with --batch-size 1000"
        if not wrong and word not in child.output[-1] and "memory" not in child.output[-1]:
            wrong = [f"printed {child.output[-1]}"]
        wrong += incomplete_files(tried) if tried.exists() else []
        row.judge([f"{more >> 20} MB more: {text}" for text in wrong], told=True)
    if not in_training:
        row.wrong.append("no limit was met in training: nothing was tried")
    smaller = world.new("smaller")
    with ending(
        world.start(["train", *flags, "--batch-size", "10", "--out", str(smaller)], before=_limited(1 << 28))
    ) as child:
        row.judge([] if child.wait() == 0 else [f"a smaller batch does not fit: {child.output[-1:]}"])
    return row
