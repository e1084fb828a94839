"""`load`: a name or a path -> a checked data set in memory."""

import hashlib
import re
from pathlib import Path

from perturblab.data import cache
from perturblab.data.binary import read_cifar, read_idx
from perturblab.data.digits import read_digits
from perturblab.data.hub import fetch
from perturblab.data.known import KNOWN, Known, by_classes, by_copy, contradiction, known_as, number_classes, plain
from perturblab.data.layouts import LAYOUTS, Source, complete, inside, sources
from perturblab.data.parquet import read_parquet
from perturblab.data.pictures import read_pictures
from perturblab.data.sets import Decoded, ImageData, Progress, check_decoded, content_hashes, image_size, silent
from perturblab.errors import DataError
from perturblab.system.files import expanded

_READERS = {
    "parquet": read_parquet,
    "pictures": read_pictures,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "idx": read_idx,
}
# Formats that hold the original pixels; a complete set in one of them is the data set, not some copy of it.
_EXACT = ("cifar10", "cifar100", "idx")


def load(source: str, *, dataroot: str | Path = "data", progress: Progress | None = None) -> ImageData:
    """Load a data set by path or by name, decoded once and then read from the cache.

    A path is a folder in one of these layouts: parquet files as on the hub, ``train/CLASS/*.png`` with
    ``test/CLASS/*.png``, or the CIFAR or MNIST files that other tools leave. A name (digits, MNIST, FashionMNIST,
    CIFAR10, CIFAR100, SVHN, in any case) is looked for under ``dataroot``, then in the cache, then on the hub.

    Args:
        source: an existing folder, or a name.
        dataroot: the folder that is searched for names: itself, and its subfolders called like the data set.
        progress: called as ``progress(text, done, total)`` while something slow goes on.

    Returns:
        The data set: images uint8 (N, C, H, W), labels int64 (N,).

    Raises:
        DataError: the source is unknown, missing, unreadable or inconsistent.
    """
    try:
        return _loaded(source, expanded(dataroot), progress or silent)
    except OSError as error:  # a folder that may not be listed, a file that goes away meanwhile
        raise DataError(f"{source!r} cannot be read ({error}); check its permissions") from error


def _loaded(source: str, root: Path, report: Progress) -> ImageData:
    folder = expanded(source)
    if source.strip() and folder.is_dir():
        return _from_folder(folder, report)
    known = known_as(source)
    if known.name == "digits":
        digits = read_digits()
        return ImageData("digits", "digits", digits.classes, *digits[:2], content_hashes(*digits[:2]))
    return _from_dataroot(known, root, report) or _from_hub(known, root, report)


def _from_folder(folder: Path, report: Progress) -> ImageData:
    found = sources(folder)
    if not found:
        raise DataError(f"{folder} holds no data set; expected {LAYOUTS}, or one of {', '.join(_tool_folders())}")
    if len(found) > 1:
        raise DataError(_several(folder, found))
    return _from_source(found[0], "", folder.resolve().name, report)


def _tool_folders() -> list[str]:
    return [known.files for known in KNOWN if known.files]


def _from_dataroot(known: Known, root: Path, report: Progress) -> ImageData | None:
    called = [source for folder in _called(known, root) if (source := _only(known, folder))]
    if called:
        first, *others = called
        if others and _rank(known, first.folder, root) == _rank(known, others[0].folder, root):
            names = " and ".join(str(source.folder) for source in (first, others[0]))
            raise DataError(f"{root} holds several copies of {known.name} ({names}); give the path of one")
        return _from_source(first, known.name, _child(first.folder, root), report)
    for source in sources(root):
        if source.hint == known.name:
            return _from_source(source, known.name, root.resolve().name, report)
        if _is_direct(known, source, root) and (data := _if_it_is(known, source, root, report)):
            return data
    return None


def _only(known: Known, folder: Path) -> Source | None:
    found = [source for source in sources(folder) if source.hint in ("", known.name)]
    if len(found) > 1:
        raise DataError(_several(folder, found))
    return found[0] if found else None


def _several(folder: Path, found: list[Source]) -> str:
    names = ", ".join(source.hint or str(source.folder) for source in found)
    return f"{folder} holds several data sets ({names}); give one of these folders, or a name and --dataroot"


def _called(known: Known, root: Path) -> list[Path]:
    """Subfolders called like the data set, such as "cifar10-jpeg" for CIFAR10; the best match first."""
    if not root.is_dir():
        return []
    # A digit after the name makes another name: CIFAR100 is not CIFAR10.
    like = re.compile(rf"{plain(known.name)}(?!\d)")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and like.match(plain(path.name)))
    return sorted(folders, key=lambda folder: _rank(known, folder, root))


def _rank(known: Known, folder: Path, root: Path) -> int:
    """How well a folder's name fits: exactly, as other tools call it, or only at its beginning."""
    child = _child(folder, root)
    return 0 if plain(child) == plain(known.name) else 1 if child == known.files.split("/")[0] else 2


def _child(folder: Path, root: Path) -> str:
    return inside(folder, root).split("/")[0]


def _is_direct(known: Known, source: Source, root: Path) -> bool:
    """Whether an unnamed source is the dataroot's own; other sets below it must not be decoded to find out."""
    own = source.folder == root or (source.folder.parent == root and source.folder.name in (known.hub[1], "data"))
    return not source.hint and own and all(source.files[split] for split in ("train", "test"))


def _if_it_is(known: Known, source: Source, root: Path, report: Progress) -> ImageData | None:
    """The dataroot itself may be the data set, but its name says nothing: its content must fit."""
    data = _from_source(source, "", root.resolve().name, report)
    if data.name == known.name:
        return data
    nameless = not data.name and data.classes == number_classes(len(data.classes))
    if not nameless or contradiction(Decoded(data.train, data.test, data.classes), known):
        return None
    return _from_source(source, known.name, root.resolve().name, report)


def _from_source(source: Source, asked: str, folder: str, report: Progress) -> ImageData:
    complete(source)
    files = {inside(path, source.folder): _file_hash(path) for path in source.all_files()}
    key = cache.key(source.kind, files)
    found = cache.read(key)
    if found:
        decoded, hashes = found
    else:
        decoded = check_decoded(_READERS[source.kind](source, report), str(source.folder))
        hashes = cache.write(key, decoded)
    copy = by_copy(files.values()) or by_copy(hashes.values())
    return _named(decoded, hashes, source, asked, copy, folder)


def _file_hash(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe or a device might never end
        raise DataError(f"{path} is no regular file; replace or remove it")
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.sha256(file.readall()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _named(
    decoded: Decoded, hashes: dict[str, str], source: Source, asked: str, copy: tuple[str, str] | None, folder: str
) -> ImageData:
    """Give decoded images the name they have earned: a known copy's, the one asked for, or the layout's."""
    if copy and asked not in ("", copy[0]):
        raise DataError(f"{source.folder} holds {copy[1]}, not {asked}; name another folder with --dataroot")
    name = copy[0] if copy else asked or source.hint or by_classes(decoded.classes, image_size(decoded.train))
    display = copy[1] if copy else folder
    if not name:
        return ImageData("", display, decoded.classes, decoded.train, decoded.test, hashes)
    known = known_as(name)
    if wrong := contradiction(decoded, known):
        raise DataError(f"{source.folder} holds {wrong}; correct the files or name another folder with --dataroot")
    if source.kind in _EXACT and (len(decoded.train), len(decoded.test)) == known.counts:
        display = known.display
    return ImageData(name, display, _class_names(decoded, known), decoded.train, decoded.test, hashes)


def _class_names(decoded: Decoded, known: Known) -> tuple[str, ...]:
    """Files without class names number them; a known data set can tell the names."""
    numbered = decoded.classes == number_classes(len(known.classes))
    return known.classes if numbered else decoded.classes


def _from_hub(known: Known, root: Path, report: Progress) -> ImageData:
    """Fetched images are kept under their name: the hub must not be asked again to learn that nothing changed."""
    key = f"hub-{known.name.lower()}-v{cache.VERSION}"
    found = cache.read(key)
    if found:
        decoded, hashes = found
    else:
        decoded = check_decoded(_fetched(known, root, report), known.display)
        hashes = cache.write(key, decoded)
    return ImageData(known.name, known.display, _class_names(decoded, known), decoded.train, decoded.test, hashes)


def _fetched(known: Known, root: Path, report: Progress) -> Decoded:
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
