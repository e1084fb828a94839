"""Readable layouts: finding them in a folder, and refusing incomplete ones."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.errors import DataError

LAYOUTS = "train-*.parquet and test-*.parquet (the hub's layout), train/CLASS/*.png and test/CLASS/*.png"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR10 = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",), "meta": ("batches.meta",)}
_CIFAR100 = {"train": ("train",), "test": ("test",), "meta": ("meta",)}


@dataclass(frozen=True)
class Source:
    """Files that make one data set.

    Args:
        kind: the reader that decodes them: "parquet", "pictures", "cifar10", "cifar100" or "idx".
        folder: of the files; messages and the cache name files relative to it.
        files: "train" and "test" (and "meta" for CIFAR's class names) -> files, in reading order.
        hint: name of the data set implied by the layout, or "".
        missing: names of required files that the folder lacks.
    """

    kind: str
    folder: Path
    files: Mapping[str, Sequence[Path]]
    hint: str = ""
    missing: Sequence[str] = ()

    def all_files(self) -> list[Path]:
        """List every file that the reader decodes."""
        return [path for paths in self.files.values() for path in paths]


def find_sources(folder: Path) -> list[Source]:
    """Find the layouts in a folder and in the subfolders that other tools make.

    Args:
        folder: an existing folder.

    Returns:
        One source per layout; no file is read yet.
    """
    layouts = [*_parquet(folder), *_pictures(folder)]
    for base, hint in ((folder, ""), (folder / "raw", ""), *_tool_folders(folder)):
        layouts += _named_files("idx", base, _IDX, hint)
    for base in (folder, folder / "cifar-10-batches-py"):
        layouts += _named_files("cifar10", base, _CIFAR10, "CIFAR10")
    for base in (folder, folder / "cifar-100-python"):
        layouts += _named_files("cifar100", base, _CIFAR100, "CIFAR100")
    return layouts


def _tool_folders(folder: Path) -> list[tuple[Path, str]]:
    return [(folder / name / "raw", name) for name in ("MNIST", "FashionMNIST")]


def check_complete(source: Source) -> None:
    """Refuse an incomplete source before any file is read.

    Args:
        source: from `find_sources`.

    Raises:
        DataError: a split or a file is missing, or a class folder has no images.
    """
    for split in ("train", "test"):
        if not source.files.get(split):
            there = ", ".join(name for name, files in source.files.items() if files) or "nothing"
            raise DataError(
                f"{source.folder} has no {split} split (found: {there}); expected train and test: add {split}"
            )
    if source.missing:
        raise DataError(f"{source.folder} lacks {', '.join(source.missing)}; add them, or unpack the archive again")
    if source.kind == "pictures":
        _check_classes(source)


def _check_classes(source: Source) -> None:
    for split in ("train", "test"):
        root = source.folder / split
        filled = {relative_path(path, root).split("/")[0] for path in source.files[split]}
        for path in _folders(root):
            if path.name not in filled:
                raise DataError(f"{path} has no images; expected {', '.join(sorted(SUFFIXES))}: fill or remove it")


def _parquet(folder: Path) -> list[Source]:
    if not folder.is_dir():
        return []
    bases = [base for base in (folder, *_folders(folder)) if any(base.glob("*.parquet"))]
    # The hub's SVHN repository also holds whole street photographs, which have no class.
    bases = [base for base in bases if base.name == "cropped_digits"] or bases
    return [Source("parquet", base, _shards(base), "SVHN" * (base.name == "cropped_digits")) for base in bases]


def _shards(folder: Path) -> dict[str, list[Path]]:
    files = sorted(folder.glob("*.parquet"))
    return {
        split: [path for path in files if re.fullmatch(rf"{split}(-.*)?\.parquet", path.name)]
        for split in ("train", "test")
    }


def _pictures(folder: Path) -> list[Source]:
    roots = {split: folder / split for split in ("train", "test")}
    if not any(_folders(root) for root in roots.values()):
        return []
    return [Source("pictures", folder, {split: _images(root) for split, root in roots.items()})]


def _images(root: Path) -> list[Path]:
    # Strings and os.walk, not Path.rglob: 60,000 files take 1 second instead of 3.
    names = (os.path.join(base, name) for each in _folders(root) for base, _, files in os.walk(each) for name in files)
    return [Path(name) for name in sorted(names) if _is_image(os.path.basename(name))]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def relative_path(path: Path, folder: Path) -> str:
    """Give the path of a file relative to a folder; much faster than `Path.relative_to`.

    Args:
        path: ``folder / ...``.
        folder: a folder above the file.

    Returns:
        The relative path, with "/" between its parts.
    """
    return str(path).removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _plain_or_gz(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _named_files(kind: str, folder: Path, names: Mapping[str, Sequence[str]], hint: str) -> list[Source]:
    """Find a layout whose files have fixed names, plain or with the suffix .gz."""
    files = {part: [path for name in group if (path := _plain_or_gz(folder / name))] for part, group in names.items()}
    if not files["train"] and not files["test"]:
        return []
    there = {path.name.removesuffix(".gz") for group in files.values() for path in group}
    missing = [name for group in names.values() for name in group if name not in there]
    return [Source(kind, folder, files, hint, missing)]
