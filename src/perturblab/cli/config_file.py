"""Flags from a YAML file, read as plain text: no object of the file is ever constructed."""

import argparse
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from perturblab.cli.arguments import IGNORED, Parser, select_fields, spellings
from perturblab.errors import UserError
from perturblab.records.config import TrainConfig, validated

if TYPE_CHECKING:
    from yaml import Node

_LARGEST = 1 << 16  # bytes, twenty times as many as all flags take
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}
_LIST = "tag:yaml.org,2002:seq"
_MAP = "tag:yaml.org,2002:map"
_NULL = "tag:yaml.org,2002:null"


def flags_in(path: Path, model: type[BaseModel]) -> dict[str, str]:
    """Read the flags in a YAML file: a mapping from flags, in any of their spellings, to plain values or flat lists.

    Args:
        path: a regular file.
        model: its fields are the known flags, beside the published ones that set nothing.

    Returns:
        Field -> the value as a user types it; ``null`` stands for the default and is left out.

    Raises:
        UserError: the file is unreadable, is not YAML or not a mapping, names an unknown flag, or names a flag twice.
    """
    fields = {name.lstrip("-"): field for field in (*model.model_fields, *IGNORED) for name in spellings(field)}
    values: dict[str, str | None] = {}
    for line, key, value in _pairs(path):
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]}?" if near else "see perturblab train --help"
            raise UserError(f"--config {path}, line {line}: no flag is called {key!r}; {hint}")
        if fields[key] in values:
            raise UserError(f"--config {path}, line {line}: {key} is given twice; drop one")
        values[fields[key]] = value
    return {field: value for field, value in values.items() if value is not None}


def _pairs(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Yield line, key and value of every entry."""
    import yaml

    text = _text(path)
    try:
        # Composing constructs no objects, whatever the tags of the file ask for.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "too deep"
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"--config {path} is not YAML ({reason}{where}); correct it") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--config {path} is not a mapping; expected lines such as nepochs: 5")
    for key, value in root.value:
        yield key.start_mark.line + 1, _scalar(key, path) or "null", _value(value, path)


def _text(path: Path) -> bytes:
    if not path.is_file():  # a device or a pipe might never end
        raise UserError(f"--config {path} is not a file; give a YAML file of flags")
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); give a YAML file of flags") from error
    if len(text) > _LARGEST:
        raise UserError(f"--config {path} has more than {_LARGEST} bytes; give a YAML file of flags")
    return text


def _value(node: "Node", path: Path) -> str | None:
    """Read a value; a list becomes text such as 0,1,2."""
    import yaml

    if not isinstance(node, yaml.SequenceNode) or node.tag != _LIST:
        return _scalar(node, path)
    return ",".join(str(_scalar(part, path)) for part in node.value)


def _scalar(node: "Node", path: Path) -> str | None:
    import yaml

    line = node.start_mark.line + 1
    if node.tag not in (*_PLAIN, _LIST, _MAP):
        raise UserError(f"--config {path}, line {line}: got the tag {node.tag!r}; expected plain values without tags")
    if not isinstance(node, yaml.ScalarNode):
        kind = type(node).__name__.removesuffix("Node").lower()
        raise UserError(f"--config {path}, line {line}: got a {kind} inside; expected plain values and flat lists")
    return None if node.tag == _NULL else str(node.value)


def add_config(parser: Parser) -> None:
    """Give a parser the option for a file of flags."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags, name: value; flags typed here win")


def training_config(args: argparse.Namespace) -> TrainConfig:
    """Validate the flags of a file and, over them, those of the command line."""
    in_file = {} if args.config is None else flags_in(Path(args.config), TrainConfig)
    return validated(TrainConfig, select_fields(argparse.Namespace(**in_file | vars(args)), TrainConfig))
