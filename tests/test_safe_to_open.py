"""Files are opened without running what is in them, and without taking more memory than they have bytes."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perturblab.errors import DataError
from perturblab.records.metrics import check_rows
from perturblab.runs.plain_data import check_archive, check_plain
from perturblab.runs.resume_checks import check_answers
from perturblab.system.memory import check_available
from told import in_order

ROW: dict[str, Any] = {
    **{"epoch": 0, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 10.0, "seconds": 1.0, "images_per_second": 5.0},
    **{"val_loss": None, "val_accuracy": None, "test_loss": 1.0, "exact": 50.0, "correct": 5, "total": 10},
}


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10)}, good)
    check_archive(good)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", bytes(10**8))
    with pytest.raises(ValueError, match=in_order("100000000 bytes")):
        check_archive(bomb)
    good.write_bytes(b"text")
    with pytest.raises(ValueError, match="not an archive"):
        check_archive(good)


def laughs() -> Any:
    inner: Any = ["ha"] * 9
    for _ in range(30):
        inner = [inner] * 9
    return inner


def itself() -> Any:
    own: list[Any] = []
    own.append(own)
    return own


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.zeros(1).expand(10**6, 10**6), "tensor 4000000000000 bytes"),
        (lambda: torch.zeros(9999), "tensor 39996 bytes 1000"),
        (lambda: torch.empty(3, device="meta"), "on meta"),
        (lambda: torch.eye(3).to_sparse(), "torch.sparse_coo"),
        (lambda: laughs(), "deeper | 1000 values"),
        (lambda: itself(), "deeper"),
        (lambda: [0] * 1000, "1000 values"),
        (lambda: {"a": {1, 2}}, "a set"),
        (lambda: {"a": b"bytes"}, "a bytes"),
    ],
)
def test_what_is_no_plain_data_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match="|".join(map(in_order, text.split(" | ")))):
        check_plain({"a": make()}, 1000)


def test_plain_data_pass() -> None:
    check_plain({"a": [1, 2.0, None, True, ("x",)], 3: torch.zeros(2, 3)}, 1000)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epoch": 3}, "epoch 3"),
        ({"total": 11}, "11 images 10"),
        ({"correct": 11}, "correct 11 10"),
        ({"train_accuracy": "x"}, "train_accuracy"),
        ({"val_accuracy": float("nan")}, "val_accuracy"),
        ({"val_accuracy": 5.0, "correct": None, "total": None}, "correct, total"),
    ],
)
def test_rows_that_no_run_writes_are_refused(change: dict[str, Any], text: str) -> None:
    check_rows([ROW], 10, audited=False)
    with pytest.raises(ValueError, match=in_order(text)):
        check_rows([ROW | change], 10, audited=False)
    with pytest.raises(ValueError, match="batch_mean"):
        check_rows([ROW], 10, audited=True)


def test_answers_are_one_bool_an_image_and_epoch() -> None:
    good = torch.ones(10, dtype=torch.bool)
    check_answers([good, good], 2, 10)
    check_answers([], 2, 10)
    for bad in ([good], [good, good[:9]], [good, good.int()], ["x", "y"]):
        with pytest.raises(ValueError, match=in_order("answers 2 10")):
            check_answers(bad, 2, 10)


def test_more_than_memory_has_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:        4 kB\n")
    check_available(4096, "they", meminfo=tmp_path / "meminfo")
    with pytest.raises(DataError, match=in_order("they memory")):
        check_available(4097, "they", meminfo=tmp_path / "meminfo")
    check_available(10**15, "they", meminfo=tmp_path / "nothing")
