"""Which of the readable layouts a folder holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.errors import DataError

LAYOUTS = (
    "a folder of train-*.parquet and test-*.parquet (the hub's layout), train/CLASS/*.png and test/CLASS/*.png,"
    " cifar-10-batches-py, cifar-100-python, MNIST/raw or FashionMNIST/raw"
)
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
        kind: "parquet", "pictures", "cifar10", "cifar100" or "idx": which reader decodes them.
        folder: where they lie; messages and the cache name files relative to it.
        files: "train" and "test" (and "meta" for CIFAR's class names) -> files, in reading order.
        hint: the data set that the layout itself tells, or "".
    """

    kind: str
    folder: Path
    files: Mapping[str, Sequence[Path]]
    hint: str = ""

    def all_files(self) -> list[Path]:
        """Every file whose content decides what is decoded."""
        return [path for paths in self.files.values() for path in paths]


def sources(folder: Path) -> list[Source]:
    """Find the layouts a folder holds, itself or in the subfolders that other tools make.

    Args:
        folder: an existing folder.

    Returns:
        One source a layout; nothing is read yet.
    """
    found = [*_parquet(folder), *_pictures(folder)]
    for base, hint in ((folder, ""), (folder / "raw", ""), *_tool_folders(folder)):
        found += _idx(base, hint)
    for base in (folder, folder / "cifar-10-batches-py"):
        found += _cifar(base, "cifar10", _CIFAR10, "CIFAR10")
    for base in (folder, folder / "cifar-100-python"):
        found += _cifar(base, "cifar100", _CIFAR100, "CIFAR100")
    return found


def _tool_folders(folder: Path) -> list[tuple[Path, str]]:
    return [(folder / name / "raw", name) for name in ("MNIST", "FashionMNIST")]


def complete(source: Source) -> Source:
    """Refuse a source that cannot be a data set, before anything is read.

    Args:
        source: as found.

    Returns:
        ``source`` itself.

    Raises:
        DataError: a split is missing, or a class folder holds no image.
    """
    for split in ("train", "test"):
        if not source.files.get(split):
            there = ", ".join(name for name, files in source.files.items() if files) or "nothing"
            raise DataError(
                f"{source.folder} has no {split} split (found: {there}); expected train and test: add {split}"
            )
    if source.kind == "pictures":
        _no_empty_class(source)
    return source


def _no_empty_class(source: Source) -> None:
    for split in ("train", "test"):
        root = source.folder / split
        filled = {path.relative_to(root).parts[0] for path in source.files[split]}
        for path in _folders(root):
            if path.name not in filled:
                raise DataError(f"{path} holds no image; expected {', '.join(sorted(SUFFIXES))}: fill or remove it")


def _parquet(folder: Path) -> list[Source]:
    if not folder.is_dir():
        return []
    bases = [base for base in (folder, *_folders(folder)) if any(base.glob("*.parquet"))]
    # The hub's SVHN repository also holds whole street photographs, which have no class.
    cropped = [base for base in bases if base.name == "cropped_digits"]
    return [Source("parquet", base, {s: _shards(base, s) for s in ("train", "test")}) for base in cropped or bases]


def _shards(folder: Path, split: str) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if re.fullmatch(rf"{split}(-.*)?\.parquet", path.name))


def _pictures(folder: Path) -> list[Source]:
    roots = {split: folder / split for split in ("train", "test")}
    if not any(_folders(root) for root in roots.values()):
        return []
    return [Source("pictures", folder, {split: _images(root) for split, root in roots.items()})]


def _images(root: Path) -> list[Path]:
    files = (path for each in _folders(root) for path in each.rglob("*"))
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _idx(folder: Path, hint: str) -> list[Source]:
    files = {split: [path for name in names if (path := _plain_or_gz(folder / name))] for split, names in _IDX.items()}
    if not any(files.values()):
        return []
    for split, names in _IDX.items():
        if len(files[split]) == 1:
            raise DataError(f"{folder} has {files[split][0].name} alone; expected {' and '.join(names)}: add the other")
    return [Source("idx", folder, files, hint)]


def _plain_or_gz(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _cifar(folder: Path, kind: str, names: Mapping[str, Sequence[str]], hint: str) -> list[Source]:
    files = {split: [folder / name for name in group if (folder / name).is_file()] for split, group in names.items()}
    if not files["train"] and not files["test"]:
        return []
    missing = [name for group in names.values() for name in group if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; expected all files of {hint}: unpack the archive again")
    return [Source(kind, folder, files, hint)]
