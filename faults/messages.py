"""Every error message of the package, found in its sources, and which of them were raised."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import perturblab

ROOT = Path(perturblab.__file__).parent
ERRORS = {"UserError", "DataError", "NonFiniteError", "ValueError"}


RANKS = "needs several processes: tests/test_torchrun.py and tests/test_ranks.py"
HUB = "of from_pretrained and the hub: tests/test_pretrained.py"
INSTALLED = "the package is installed where this was run"
VOID = "there is no known fault today: tests/test_numerics.py and tests/test_resume.py make one up"
# Why no case on the command line can come to a message. Python code can, and the tests do.
REASONS = {
    "UserError: AutoAttack and Square need": INSTALLED,
    "UserError: images are {height}x{width}; Square in l2": "the images of every set here are large enough",
    "DataError: {source.folder} holds {copy[1]}": "only the real files have the hash of a known copy",
    "DataError: {where} has the label {error}": "other class names in test than in train are told first",
    "UserError: rows has no epoch": "a run always has one when it draws",
    "UserError: --config {path} cannot be read": "the privileged user of the test may read all files",
    "DataError: {source} cannot be read": "the privileged user of the test may list all folders",
    "DataError: {path} cannot be read": "the privileged user of the test may read all files",
    "UserError: {path} cannot be written": "staged by python -m faults: full disks",
    "UserError: busy": "staged by python -m faults: two processes on one run",
    "UserError: {run.folder / CHECKPOINT} is not the one": "staged by python -m faults: two processes on one run",
    "UserError: {run.folder} is void": VOID,
    "UserError: {folder} is void": VOID,
    "UserError: {reason} with --batch-size": "staged by python -m faults: limited memory",
    "UserError: perturblab {args.command} is a single": RANKS,
    "UserError: --device got {device} for process": RANKS,
    "UserError: WORLD_SIZE is": RANKS,
    "UserError: the {other[0]} of ranks": RANKS,
    "UserError: --batch-size {recipe.batch_size} leaves a batch of {last} of {images} training images for": RANKS,
    "UserError: {what} needs": INSTALLED,
    "UserError: --on ray needs Ray": INSTALLED,
    "UserError: {folder} holds no {missing[0]}": HUB,
    "UserError: {path} describes no net": HUB,
    "UserError: {weights} holds the weights of another net": HUB,
    "UserError: {path.parent} holds no {path.name}; give a folder that save_pretrained": HUB,
    "UserError: {path} is no configuration of a perturblab net": HUB,
    "UserError: {what}: {_said(error)}": HUB,
    "UserError: {repo} cannot be pushed": HUB,
}
ONLY_PYTHON = "only from Python: on the command line the flags are checked before"


@dataclass(frozen=True)
class Message:
    """A raise statement of the package.

    Args:
        file: relative to the package.
        first: its first line.
        last: its last line.
        error: name of the exception.
        text: the message as it stands in the source.
    """

    file: str
    first: int
    last: int
    error: str
    text: str

    @property
    def cell(self) -> str:
        """As a cell of a table in Markdown; without the line, which every change of the file would move."""
        text = self.text.replace("|", "\\|").replace("\n", " ")
        text = f"`` {text} ``" if "`" in text else f"`{text}`"  # or two underscores would make bold type
        return f"`{self.file}` {self.error}: {text}"


def messages() -> list[Message]:
    """Every error message of the package, in the order of its files."""
    return [message for path in sorted(ROOT.rglob("*.py")) for message in _of_file(path)]


def reason(message: Message) -> str:
    """Say why no case raised a message."""
    said = f"{message.error}: {message.text}"
    known = next((why for begin, why in REASONS.items() if said.startswith(begin)), "")
    return f"not reached: {known or (ONLY_PYTHON if message.error == 'ValueError' else 'no case found')}"


def _of_file(path: Path) -> Iterator[Message]:
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            error = ast.unparse(node.exc.func)
            if error in ERRORS:
                text = ", ".join(map(_said, node.exc.args))
                yield Message(name, node.lineno, node.end_lineno or node.lineno, error, text)


def _said(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr):
        return "".join(map(_part, argument.values))
    return str(argument.value) if isinstance(argument, ast.Constant) else ast.unparse(argument)


def _part(part: ast.expr) -> str:
    return f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else str(ast.literal_eval(part))


def reached(found: Iterable[Message], raised: Mapping[tuple[str, int], str]) -> dict[Message, str]:
    """Say which messages were raised, and by which case.

    Args:
        found: all messages.
        raised: file and line of a raise statement -> name of the first case that came there.

    Returns:
        Message -> case; without those that no case raised.
    """
    by_file: dict[str, list[tuple[int, str]]] = {}
    for (file, line), case in raised.items():
        by_file.setdefault(file, []).append((line, case))
    return {
        message: case
        for message in found
        for line, case in by_file.get(str(ROOT / message.file), [])
        if message.first <= line <= message.last
    }
