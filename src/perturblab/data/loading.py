"""`load`: from a name or a path to a checked data set in memory."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from perturblab.data import cache
from perturblab.data.binary import read_cifar, read_idx
from perturblab.data.digits import read_digits
from perturblab.data.hub import fetch
from perturblab.data.known import (
    KNOWN,
    Known,
    contradiction,
    find_known,
    name_by_classes,
    name_of_copy,
    number_classes,
    simplify,
)
from perturblab.data.layouts import LAYOUTS, Source, check_complete, find_sources, relative_path
from perturblab.data.parquet import read_parquet
from perturblab.data.pictures import read_pictures
from perturblab.data.sets import Decoded, ImageData, Progress, check_decoded, content_hashes, image_size, silent
from perturblab.errors import DataError
from perturblab.system.files import expand_home

_READERS = {
    "parquet": read_parquet,
    "pictures": read_pictures,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "idx": read_idx,
}
# Formats with the original pixels: a complete set in one of them is the data set itself, not a copy.
_EXACT = ("cifar10", "cifar100", "idx")


def load(source: str, *, dataroot: str | Path = "data", progress: Progress | None = None) -> ImageData:
    """Load a data set by path or by name; it is decoded once and then read from the cache.

    A path is a folder in one of these layouts: parquet files as on the hub, ``train/CLASS/*.png`` with
    ``test/CLASS/*.png``, or the CIFAR or MNIST files that other tools leave. A name (digits, MNIST, FashionMNIST,
    CIFAR10, CIFAR100, SVHN, in any case) is looked for under ``dataroot``, then in the cache, then on the hub.

    Args:
        source: an existing folder, or a name.
        dataroot: the folder to search for names: itself, and its subfolders named like the data set.
        progress: called as ``progress(text, done, total)`` during slow work.

    Returns:
        The data set: images uint8 (N, C, H, W), labels int64 (N,).

    Raises:
        DataError: the source is unknown, missing, unreadable or inconsistent.
    """
    try:
        return _load(source, expand_home(dataroot), progress or silent)
    except OSError as error:  # an unreadable folder, a file removed meanwhile
        raise DataError(f"{source!r} cannot be read ({error}); check its permissions") from error


def _load(source: str, root: Path, report: Progress) -> ImageData:
    folder = expand_home(source)
    if source.strip() and folder.is_dir():
        return _from_folder(folder, report)
    known = find_known(source)
    if known.name == "digits":
        train, test, classes = read_digits()
        return ImageData("digits", "digits", classes, train, test, content_hashes(train, test))
    return _from_dataroot(known, root, report) or _from_hub(known, root, report)


def _from_folder(folder: Path, report: Progress) -> ImageData:
    sources = find_sources(folder)
    if not sources:
        files = ", ".join(known.files for known in KNOWN if known.files)
        raise DataError(f"{folder} has no data set; expected {LAYOUTS}, or one of {files}")
    if len(sources) > 1:
        raise DataError(_several(folder, sources))
    return _from_source(sources[0], "", folder.resolve().name, report)


def _from_dataroot(known: Known, root: Path, report: Progress) -> ImageData | None:
    by_name = [source for folder in _folders_named(known, root) if (source := _single_source(known, folder))]
    if by_name:
        first, *others = by_name
        if others and _rank(known, first.folder, root) == _rank(known, others[0].folder, root):
            names = " and ".join(str(source.folder) for source in (first, others[0]))
            raise DataError(f"{root} has several copies of {known.name} ({names}); give the path of one")
        return _from_source(first, known.name, _child(first.folder, root), report)
    for source in find_sources(root):
        if source.hint == known.name:
            return _from_source(source, known.name, root.resolve().name, report)
        if _is_direct(known, source, root) and (data := _from_unnamed(known, source, root, report)):
            return data
    return None


def _single_source(known: Known, folder: Path) -> Source | None:
    sources = [source for source in find_sources(folder) if source.hint in ("", known.name)]
    if len(sources) > 1:
        raise DataError(_several(folder, sources))
    return sources[0] if sources else None


def _several(folder: Path, sources: list[Source]) -> str:
    names = ", ".join(source.hint or str(source.folder) for source in sources)
    return f"{folder} has several data sets ({names}); give one of these folders, or a name and --dataroot"


def _folders_named(known: Known, root: Path) -> list[Path]:
    """List the subfolders named like the data set, such as "cifar10-jpeg" for CIFAR10; the best match first."""
    if not root.is_dir():
        return []
    # A digit after the name makes another name: CIFAR100 is not CIFAR10.
    start = re.compile(rf"{simplify(known.name)}(?!\d)")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and start.match(simplify(path.name)))
    return sorted(folders, key=lambda folder: _rank(known, folder, root))


def _rank(known: Known, folder: Path, root: Path) -> int:
    """Rank a folder's name: 0 for the data set's, 1 for the one that other tools give it, 2 for a similar one."""
    child = _child(folder, root)
    return 0 if simplify(child) == simplify(known.name) else 1 if child == known.files.split("/")[0] else 2


def _child(folder: Path, root: Path) -> str:
    return relative_path(folder, root).split("/")[0]


def _is_direct(known: Known, source: Source, root: Path) -> bool:
    """Say whether an unnamed source belongs to the dataroot itself; others below it are too costly to decode."""
    parent_is_root = source.folder.parent == root and source.folder.name in (known.hub[1], "data")
    direct = source.folder == root or parent_is_root
    return not source.hint and direct and all(source.files[split] for split in ("train", "test"))


def _from_unnamed(known: Known, source: Source, root: Path, report: Progress) -> ImageData | None:
    """Load a source without a name if its content fits the data set."""
    data = _from_source(source, "", root.resolve().name, report)
    if data.name == known.name:
        return data
    nameless = not data.name and data.classes == number_classes(len(data.classes))
    if not nameless or contradiction(Decoded(data.train, data.test, data.classes), known):
        return None
    return _from_source(source, known.name, root.resolve().name, report)


def _from_source(source: Source, name: str, folder: str, report: Progress) -> ImageData:
    """Load a source as the data set of a name; "" leaves the name to its content."""
    check_complete(source)
    files = {relative_path(path, source.folder): _file_hash(path) for path in source.all_files()}
    key = cache.key(source.kind, files)
    decoded, hashes = _decode_once(key, str(source.folder), lambda: _READERS[source.kind](source, report))
    copy = name_of_copy(files.values()) or name_of_copy(hashes.values())
    if copy and name not in ("", copy[0]):
        raise DataError(f"{source.folder} is {copy[1]}, not {name}; name another folder with --dataroot")
    display = copy[1] if copy else folder
    name = copy[0] if copy else name or source.hint or name_by_classes(decoded.classes, image_size(decoded.train))
    if not name:
        return ImageData("", display, decoded.classes, decoded.train, decoded.test, hashes)
    known = find_known(name)
    if reason := contradiction(decoded, known):
        raise DataError(f"{source.folder} has {reason}; correct the files or name another folder with --dataroot")
    if source.kind in _EXACT and (len(decoded.train), len(decoded.test)) == known.counts:
        display = known.display
    return ImageData(name, display, _class_names(decoded, known), decoded.train, decoded.test, hashes)


def _decode_once(key: str, where: str, decode: Callable[[], Decoded]) -> tuple[Decoded, dict[str, str]]:
    """Read decoded images from the cache, or decode, check and cache them; with the hashes of their content."""
    if entry := cache.read(key):
        return entry
    decoded = check_decoded(decode(), where)
    return decoded, cache.write(key, decoded)


def _file_hash(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe or a device might never end
        raise DataError(f"{path} is not a regular file; replace or remove it")
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.sha256(file.readall()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _class_names(decoded: Decoded, known: Known) -> tuple[str, ...]:
    """Give the class names; those of the known data set where the files only number the classes."""
    numbered = decoded.classes == number_classes(len(known.classes))
    return known.classes if numbered else decoded.classes


def _from_hub(known: Known, root: Path, report: Progress) -> ImageData:
    """Load from the hub; the cache entry has the data set's name, so that later runs need no connection."""
    key = f"hub-{known.name.lower()}-v{cache.VERSION}"
    decoded, hashes = _decode_once(key, known.display, lambda: _fetch(known, root, report))
    return ImageData(known.name, known.display, _class_names(decoded, known), decoded.train, decoded.test, hashes)


def _fetch(known: Known, root: Path, report: Progress) -> Decoded:
    try:
        return fetch(known, report)
    except DataError:
        raise
    except Exception as error:  # no connection, no disk space, a changed repository: the remedy is the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        files = f", or {known.files}" if known.files else ""
        raise DataError(
            f"{known.name} is neither under {root} nor in the cache, and the hub did not provide it ({reason});"
            f" name with --dataroot a folder that holds {known.name.lower()}/ with {LAYOUTS}{files}"
        ) from error
