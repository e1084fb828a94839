"""The compiled library of the kernels: threads, processes that compile at once, damage, no compiler."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_cases import assert_close, case, needs_compiler, outcome, spied, truth
from perturblab.layers.kernels import build, perturb_conv2d


@pytest.fixture
def _fresh_library() -> Iterator[None]:
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.usefixtures("_fresh_library")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("PERTURBLAB_NATIVE", "0"), ("CXX", "/nonexistent"), ("CXX", "false"), ("PERTURBLAB_CACHE", "/dev/null/cache")],
)
def test_without_a_compiler_the_results_are_equal(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    called = spied(monkeypatch)
    got = outcome(perturb_conv2d, case(), nn.PReLU())
    assert called[0] == "chunked.in_pieces"
    assert_close(got, truth(case(), nn.PReLU()), 1e-6)


START = """
import torch
import kernel_cases as t
from perturblab.layers.kernels import build, perturb_conv2d
"""


def start(code: str, **variables: str) -> "subprocess.Popen[str]":
    command, environment = [sys.executable, "-c", START + code], {**os.environ, **variables}
    folder, pipe = Path(__file__).parent, subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"status {process.returncode}: {err[-2000:]}"
    return out.strip()


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    code = "print(torch.get_num_threads(), t.digest())"
    one, two = (said(start(code, OMP_NUM_THREADS=number)).split(" ", 1) for number in "12")
    assert (one[0], two[0]) == ("1", "2")
    assert one[1] == two[1]


CHECKED = """
for name in {names}:
    got, want = (run(t.case(), t.acts()[name]) for run in (lambda *a: t.outcome(perturb_conv2d, *a), t.truth))
    t.assert_close(got, want, 1e-6)
    print(name, build.library(name, torch.float32) is not None)
"""


@needs_compiler
def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    both = [start(CHECKED.format(names=["tanh"]), PERTURBLAB_CACHE=str(tmp_path)) for _ in range(2)]
    assert [said(process) for process in both] == ["tanh True"] * 2
    assert len(list((tmp_path / "kernels").iterdir())) == 1, "one library, and nothing else is left"


@needs_compiler
def test_damaged_libraries_do_no_harm(tmp_path: Path) -> None:
    """One is empty, one is text, one has lost its second half."""
    (tmp_path / "kernels").mkdir()
    damages: dict[str, Callable[[bytes], bytes]] = {
        "sigmoid": lambda whole: b"",
        "tanh": lambda whole: b"no library",
        "relu": lambda whole: whole[: len(whole) // 2],
    }
    for name, damage in damages.items():
        assert build.library(name, torch.float32) is not None
        (good,) = (Path(os.environ["PERTURBLAB_CACHE"]) / "kernels").glob(f"{name}-float-*.so")
        (tmp_path / "kernels" / good.name).write_bytes(damage(good.read_bytes()))
    said(start(CHECKED.format(names=tuple(damages)), PERTURBLAB_CACHE=str(tmp_path)))
