"""The attack points and masking checks in a run's folder: read once, changed in memory, written where they changed."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from perturblab.records.attack_names import WORST
from perturblab.records.checks import Check, load_checks, save_checks
from perturblab.records.flags import flag_points
from perturblab.records.paths import CHECKS, RunFolder, file_of, point_files
from perturblab.records.points import Point, load_points, save_points
from perturblab.records.worst_case import with_worst
from perturblab.system.files import stamp


class RunPoints:
    """Points and checks of one run.

    A file is read when it is first needed, and again only when another process has written it since.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checks_file = RunFolder(folder).attacks / CHECKS
        self._read: dict[Path, tuple[tuple[int, ...] | None, list[Any]]] = {}

    def find(self, point: Point) -> Point | None:
        """Find the point with the key of another one.

        Raises:
            UserError: its file was not written by this program.
        """
        return next((kept for kept in self._points(self._file(point)) if kept.key == point.key), None)

    def add(self, point: Point) -> None:
        """Put a point into its file, in place of the one with its key.

        Raises:
            UserError: the file cannot be read or written.
        """
        path = self._file(point)
        others = [kept for kept in self._points(path) if kept.key != point.key]
        self._save_points(path, sorted([*others, point], key=lambda p: (p.total, p.weights, p.eps)))

    @property
    def checks(self) -> list[Check]:
        """The masking checks of the run."""
        return self._contents(self._checks_file, lambda _: load_checks(self.folder))

    def add_check(self, check: Check) -> None:
        """Put a masking check into the folder.

        Raises:
            UserError: the file cannot be read or written.
        """
        self._save_checks([*self.checks, check])

    def marked(self) -> list[Point]:
        """Give the points of every attack that the run has met, in the order of their files.

        Returns:
            Points with all flags that the checks in the folder and the points together raise, whichever call made them.

        Raises:
            UserError: a file was not written by this program.
        """
        points = [point for file in point_files(self.folder) for point in self._points(file)]
        return flag_points(points, [check.raised for check in self.checks])

    def with_worst(self) -> list[Point]:
        """Give the points as `marked`, then the worst cases over them."""
        return with_worst(self.marked())

    def settle(self, clean: Mapping[tuple[str, str], str] | None = None) -> list[Point]:
        """Write the flags and worst cases that follow from all points and checks; only files that change are written.

        Args:
            clean: as for `with_worst`.

        Returns:
            As `with_worst`.

        Raises:
            UserError: a file cannot be read or written.
        """
        points = with_worst(self.marked(), clean)
        rest = iter(points)
        files = {path: list(islice(rest, len(self._points(path)))) for path in point_files(self.folder)}
        for norm in ("linf", "l2"):
            worst = [p for p in points if (p.attack, p.norm) == (WORST, norm)]
            files[file_of(self.folder, WORST, norm)] = worst
        for path, marked in files.items():
            if marked != self._points(path):
                self._save_points(path, marked)
        return points

    def bring(self, other: "RunPoints") -> None:
        """Copy the points and checks of another folder whose keys this one lacks.

        Raises:
            UserError: a file cannot be read or written.
        """
        for file in point_files(other.folder):
            path = RunFolder(self.folder).attacks / file.name
            measured = {point.key for point in self._points(path)}
            if new := [point for point in other._points(file) if point.key not in measured]:
                self._save_points(path, [*new, *self._points(path)])
        seen = [check.key for check in self.checks]
        if unseen := [check for check in other.checks if check.key not in seen]:
            self._save_checks([*unseen, *self.checks])

    def _file(self, point: Point) -> Path:
        return file_of(self.folder, point.attack, point.norm)

    def _points(self, path: Path) -> list[Point]:
        return self._contents(path, load_points)

    def _contents(self, path: Path, load: Callable[[Path], list[Any]]) -> list[Any]:
        now = stamp(path)
        if path not in self._read or self._read[path][0] != now:
            self._read[path] = now, load(path)
        return self._read[path][1]

    def _save_points(self, path: Path, points: list[Point]) -> None:
        save_points(path, points)
        self._read[path] = stamp(path), points

    def _save_checks(self, checks: list[Check]) -> None:
        save_checks(self.folder, checks)
        self._read[self._checks_file] = stamp(self._checks_file), checks
