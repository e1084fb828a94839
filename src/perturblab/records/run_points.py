"""Attack points and masking checks in a run's folder: read once, changed in memory, written where they changed."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from perturblab.records.attack_names import WORST
from perturblab.records.checks import Check, load_checks, save_checks
from perturblab.records.flags import flag_points
from perturblab.records.paths import RunFolder, file_of, point_files
from perturblab.records.points import Point, load_points, save_points
from perturblab.records.worst_case import with_worst
from perturblab.system.files import stamp


class RunPoints:
    """Points and checks of one run.

    A file is read when it is first needed, and again only when another process has written it since. Every method
    raises a UserError for a file that was not written by this program, or that cannot be written.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._attacks, self._checks = RunFolder(folder).attacks, RunFolder(folder).checks
        self._known: dict[Path, tuple[tuple[int, ...] | None, list[Any]]] = {}

    @property
    def checks(self) -> list[Check]:
        """The masking checks of the run."""
        return self._read(self._checks)

    def find(self, point: Point) -> Point | None:
        """Find the point with the key of another one; None where it was not measured."""
        return next((kept for kept in self._read(self._file(point)) if kept.key == point.key), None)

    def add(self, point: Point) -> None:
        """Put a point into its file, in place of the one with its key."""
        others = [kept for kept in self._read(self._file(point)) if kept.key != point.key]
        self._write(self._file(point), sorted([*others, point], key=lambda p: (p.total, p.weights, p.eps)))

    def add_check(self, check: Check) -> None:
        """Put a masking check into its file."""
        self._write(self._checks, [*self.checks, check])

    def was_checked(self, points: Iterable[Point]) -> bool:
        """Say whether the masking checks have seen the nets of these points."""
        return {point.net for point in points if not point.name.is_worst} <= {check.net for check in self.checks}

    def marked(self) -> list[Point]:
        """Give the points of every attack that the run has met, in the order of their files.

        Returns:
            Points with all flags that the checks in the folder and the points together raise, whichever call made them.
        """
        points = [point for file in point_files(self.folder) for point in self._read(file)]
        return flag_points(points, [check.raised for check in self.checks])

    def settle(self, clean: Mapping[tuple[str, str], str]) -> list[Point]:
        """Write the flags and worst cases that follow from all points and checks; only files that change are written.

        Args:
            clean: as for `with_worst`.

        Returns:
            The points as `marked`, then the worst cases over them.
        """
        points = with_worst(self.marked(), clean)
        rest = iter(points)
        files = {path: list(islice(rest, len(self._read(path)))) for path in point_files(self.folder)}
        for norm in ("linf", "l2"):
            worst = [p for p in points if (p.attack, p.norm) == (WORST, norm)]
            files[file_of(self.folder, WORST, norm)] = worst
        for path, marked in files.items():
            if marked != self._read(path):
                self._write(path, marked)
        return points

    def bring(self, other: "RunPoints") -> None:
        """Copy the points and checks of another folder whose keys this one lacks."""
        for file in (*point_files(other.folder), other._checks):
            path = self._attacks / file.name
            kept = self._read(path)
            keys = {one.key for one in kept}
            if new := [one for one in other._read(file) if one.key not in keys]:
                self._write(path, [*new, *kept])

    def _file(self, point: Point) -> Path:
        return file_of(self.folder, point.attack, point.norm)

    def _read(self, path: Path) -> list[Any]:
        now = stamp(path)
        if path not in self._known or self._known[path][0] != now:
            self._known[path] = now, load_checks(path) if path == self._checks else load_points(path)
        return self._known[path][1]

    def _write(self, path: Path, contents: list[Any]) -> None:
        if path == self._checks:
            save_checks(path, contents)
        else:
            save_points(path, contents)
        self._known[path] = stamp(path), contents
