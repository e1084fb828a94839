"""A study on a Ray cluster: a real one of two machines on this one, of which one is killed with a run in hand."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perturblab.records import store
from perturblab.records.record import Record, Study
from told import in_order

PATIENCE = 240.0  # seconds, on a busy machine

# A head that runs nothing, and two machines with one core each; a line on stdin kills one of them, or adds one with
# three cores and what Ray takes for a GPU.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, *(node.all_processes["raylet"][0].process.pid for node in nodes), flush=True)
for line in sys.stdin:
    if line.strip() == "add":
        node = cluster.add_node(num_cpus=3, num_gpus=1)
        print(node.all_processes["raylet"][0].process.pid, flush=True)
    else:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
        print("removed", flush=True)
cluster.shutdown()
"""


@dataclass
class Cluster:
    """A cluster at work: its address, that of its client server, and the process of each machine."""

    address: str
    client: str
    machines: list[int]
    process: "subprocess.Popen[str]"

    def kill(self, machine: int) -> None:
        assert self._told(str(machine)) == "removed"

    def add(self) -> int:
        return int(self._told("add"))

    def _told(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def started(port: int) -> Iterator[Cluster]:
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER, str(port)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # With gRPC's fork handlers, one in ten of the servers that the head forks for its clients dies at birth.
    steady = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    with subprocess.Popen(command, text=True, env=steady, **pipes) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline())[:1].isdigit():
            assert line, "the cluster did not start"
        address, *machines = line.split()
        yield Cluster(address, f"ray://127.0.0.1:{port}", [int(pid) for pid in machines], process)
        process.communicate(timeout=60)


def free_port() -> int:
    import socket

    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    with started(free_port()) as there:
        yield there


@contextmanager
def begun(words: str, cluster: Cluster, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """`perturblab run` on the cluster."""
    places = f"--results {folder}/results --work {folder}/runs"
    command = [sys.executable, *shlex.split(f"-m perturblab run {words} {places}")]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def below(machine: int) -> set[int]:
    """All processes that a process has started, and those that these have."""
    found, todo = set[int](), [machine]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                todo += [int(pid) for pid in task.read_text().split() if int(pid) not in found]
            except OSError:
                continue
        found |= set(todo)
    return found


def runs(folder: Path, among: set[int] | None = None) -> dict[str, int]:
    """Trainings at work below a folder: process by name of the set-up."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        place = next((word for word in words if word.startswith(f"{folder}/runs/")), None)
        pid = int(path.parent.name)
        if place is not None and "train" in words and (among is None or pid in among):
            found[Path(place).parts[-2]] = pid
    return found


def wait_until(met: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def kept(folder: Path, names: Sequence[str]) -> dict[str, Record]:
    """The records, which must be these and no others."""
    files = sorted((folder / "results").rglob("*.json"))
    assert files == [folder / f"results/quick/{name}/seed-1/record.json" for name in sorted(names)]
    found = {file.parts[-3]: store.load_record(file) for file in files}
    for name, record in found.items():
        assert record.study == Study(setup=name, preset="quick")
        assert len((folder / f"results/quick/{name}/seed-1/metrics.jsonl").read_text().splitlines()) == 12
    return found


# --- a real cluster -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_machine_that_is_lost_with_a_run_in_hand_loses_no_record(cluster: Cluster, tmp_path: Path) -> None:
    with begun("K4 H5 --seeds 1 --on ray", cluster, tmp_path) as process:
        wait_until(lambda: len(runs(tmp_path)) == 2, process)
        ((name, pid),) = runs(tmp_path, below(cluster.machines[1])).items()
        ((other, _),) = runs(tmp_path, below(cluster.machines[0])).items()
        assert {name, other} == {"K4", "H5"}, "each machine has one"
        wait_until((tmp_path / f"runs/quick/{name}/seed-1").is_dir, process)
        cluster.kill(1)
        wait_until(lambda: runs(tmp_path).get(name) != pid, process)
        wait_until(lambda: name in runs(tmp_path, below(cluster.machines[0])), process)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"2 runs done, 0 failed; records: {tmp_path}/results/quick\n")
    assert len(re.findall(in_order("warning: lost machine ; again"), errors)) == 1
    assert sorted(line for line in errors.splitlines() if "done" in line) == [
        *("H5 seed 1: done", "K4 seed 1: done", "quick: 2 runs, 0 done, 2 missing")
    ]
    found = kept(tmp_path, ["K4", "H5"])
    here = subprocess.run(
        shlex.split(
            f"{sys.executable} -m perturblab run {name} --seed 1 --jobs 2 --quiet --results {tmp_path}/here/results "
            f"--work {tmp_path}/here/runs"
        ),
        check=True,
    )
    assert here.returncode == 0
    assert kept(tmp_path / "here", [name])[name].counts == found[name].counts


def is_asked(pid: int) -> bool:
    """A signal waits for a process that is held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))


def stop(process: "subprocess.Popen[str]", pids: Sequence[int]) -> tuple[str, str]:
    """As by Ctrl-C, which finds these runs at work: they are held until they are asked to stop."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: all(map(is_asked, pids)), process)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    return out, errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stop_leaves_nothing_running_and_the_same_command_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    words = f"K4 --seeds 1 --on {cluster.client}"
    log = tmp_path / "runs/quick/K4/seed-1"
    with begun(words, cluster, tmp_path) as process:
        wait_until(log.is_dir, process)
        out, errors = stop(process, [*runs(tmp_path).values()])
    assert out == ""
    assert re.fullmatch(in_order("stopped ; same command") + ".*", errors.splitlines()[-1])
    assert runs(tmp_path) == {}
    assert not (tmp_path / "results/quick/K4/seed-1/record.json").exists()
    with begun(words, cluster, tmp_path) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"1 runs done, 0 failed; records: {tmp_path}/results/quick\n"), errors
    kept(tmp_path, ["K4"])


def gpus(pid: int) -> str | None:
    """Which ones a process may use, as Ray says it to the process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next((text.partition("=")[2] for text in variables if text.startswith("CUDA_VISIBLE_DEVICES=")), None)


def hear(tokens: str, process: "subprocess.Popen[str]") -> None:
    """Wait until a line of its stderr has these tokens."""
    assert process.stderr is not None
    guard = threading.Timer(PATIENCE, process.kill)
    guard.start()
    assert any(re.search(in_order(tokens), line) for line in process.stderr), f"it never said {tokens!r}"
    guard.cancel()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_gets_the_cores_and_the_gpu_that_it_asks_for(cluster: Cluster, tmp_path: Path) -> None:
    """Two cores are there when a machine with three joins; its GPU serves two runs of a half, or one after another."""
    with begun("K4 --seeds 1 --on ray --cpus 2", cluster, tmp_path) as process:
        hear("warning: no machine 2 cores 0 GPUs ; wait", process)
        assert runs(tmp_path) == {}
        machine = cluster.add()
        wait_until(lambda: runs(tmp_path), process)
        (pid,) = runs(tmp_path, below(machine)).values()
        assert "\0--nthreads\x002\0" in Path(f"/proc/{pid}/cmdline").read_text()
        assert gpus(pid) == os.environ.get("CUDA_VISIBLE_DEVICES")
        stop(process, [pid])
    with begun("K4 H5 --seeds 1 --on ray --gpus 0.5", cluster, tmp_path) as process:
        wait_until(lambda: len(runs(tmp_path)) == 2, process)
        pids = [*runs(tmp_path, below(machine)).values()]
        assert [gpus(pid) for pid in pids] == ["0", "0"]
        assert "no machine" not in stop(process, pids)[1]
    seen = dict[str, int]()
    with begun("K4 H5 --seeds 1 --on ray --gpus 1", cluster, tmp_path) as process:
        while len(seen) < 2:
            wait_until(lambda: runs(tmp_path).keys() - seen.keys(), process)
            ((name, pid),) = runs(tmp_path).items()  # never two, though there are cores for both
            assert (name in runs(tmp_path, below(machine)), gpus(pid)) == (True, "0")
            seen[name] = pid
        stop(process, [pid])


@pytest.mark.slow
def test_what_fails_on_a_machine_is_told_and_written_down(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quick").touch()  # where a folder must be
    with begun("K4 --seeds 1 --on ray", cluster, tmp_path) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out.splitlines()[0] == f"0 runs done, 1 failed; records: {tmp_path}/results/quick"
    assert "K4 seed 1: failed: " in errors
    written = json.loads((tmp_path / "results/quick/K4/seed-1/failed.json").read_text())
    assert written["name"] == "K4 seed 1"
    assert "runs" in written["reason"]
