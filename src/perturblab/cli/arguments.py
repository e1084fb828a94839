"""Command-line options made from validated models; errors in one sentence."""

import argparse
import difflib
import re
import textwrap
import types
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perturblab.errors import UserError

# The published spelling first where a field has a shorter name too.
# torchrun takes every prefix of its own options: --log begins three of them.
_ALIASES = {"manual_seed": ("--seed",), "learning_rate": ("--lr",), "log": ("--write-log",)}

# Flags of the published codes that set nothing here, with their help: accepted, so that published commands still work.
IGNORED = {
    "save": "accepted; the run's folder holds the weights",
    "logs": "accepted; the run's folder holds the logs",
    "learning_rate_decay": "refused: read by none of the published codes",
}
_REFUSED = {"learning_rate_decay": "is read by none of the published codes; use --optimizer-schedule"}


class _Help(argparse.HelpFormatter):
    """A formatter that never breaks a line inside a choice such as different-class."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence instead of printing the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help} | kwargs)
        # Without this, argparse takes -1e-3 and -inf for unknown options: "--level -1e-3" would lack its value.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-(inf|nan)$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`, so that every mistake ends in one line, instead of exiting here."""
        raise UserError(f"{message}; see {self.prog} --help")


def _is_flag(field: FieldInfo) -> bool:
    kinds = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
    return bool in kinds


def _choices(field: FieldInfo) -> str:
    kinds: list[Any] = [field.annotation]
    for kind in kinds:  # grows: the choices may stand inside an optional and an annotated type
        kinds += get_args(kind) if get_origin(kind) is not Literal else ()
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    return f" ({', '.join(map(str, choices))})" if choices else ""


def spellings(name: str) -> list[str]:
    """List the options that set a field: ``--net-type``, ``--net_type``."""
    return list(dict.fromkeys(["--" + name.replace("_", "-"), "--" + name, *_ALIASES.get(name, ())]))


def _as_typed(default: object) -> str:
    """Write a default as a user types it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "on" if default is True else str(default)


def add_fields(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Give a parser one option per field, in both spellings; an option that is not given sets nothing."""
    for name, field in model.model_fields.items():
        default = "" if field.default in (None, False) else f" [{_as_typed(field.default)}]"
        text = f"{field.description}{_choices(field)}{default}".replace("%", "%%")
        form: Any = {"action": argparse.BooleanOptionalAction} if _is_flag(field) else {"metavar": _metavar(name)}
        parser.add_argument(*spellings(name), dest=name, default=argparse.SUPPRESS, help=text, **form)


def add_ignored(parser: argparse.ArgumentParser) -> None:
    """Give a parser the published flags that set nothing, in both spellings."""
    for name, text in IGNORED.items():
        parser.add_argument(*spellings(name), dest=name, default=argparse.SUPPRESS, metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        UserError: an option is unknown (the message names the nearest one), a value or the command is missing.
    """
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(parser, known.command, unknown[0]))
    if not known.command:
        raise UserError("no command given; see perturblab --help")
    return known


def _unknown(parser: Parser, command: str | None, got: str) -> str:
    if not got.startswith("-"):
        return f"got {got!r}, which does not belong to an option; see perturblab {command or ''} --help".replace(
            "  ", " "
        )
    part = parser if command is None else _subparser(parser, command)
    flag = got.split("=")[0]
    flags = {_letters(known): known for known in reversed(part._option_string_actions) if known != flag}
    near = difflib.get_close_matches(_letters(flag), flags, 1, cutoff=0.7)
    hint = f"did you mean {flags[near[0]]}?" if near else f"see {part.prog} --help"
    return f"unknown option {flag}; {hint}"


def _letters(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").lower()


def _subparser(parser: Parser, command: str) -> Parser:
    actions = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    subparser: Parser = actions.choices[command]
    return subparser


def select_fields(args: argparse.Namespace, model: type[BaseModel]) -> dict[str, object]:
    """Select the flags that set a field of a model.

    Raises:
        UserError: a refused published flag is given.
    """
    if refused := next((name for name in _REFUSED if name in args), None):
        raise UserError(f"{spellings(refused)[0]} {_REFUSED[refused]}")
    return {name: value for name, value in vars(args).items() if name in model.model_fields}


def integers(text: str, flag: str, count: Sequence[int] = (1,)) -> list[int]:
    """Read one or more integers from 1 to 2^31 - 1, separated by commas.

    Raises:
        UserError: the text has another form.
    """
    parts = text.split(",")
    if len(parts) not in count or not all(p.strip().isdecimal() and 0 < int(p) < 2**31 for p in parts):
        form = " or ".join(["N", "N,N"][c - 1] for c in count)
        raise UserError(f"{flag} got {text!r}; expected {form} of at least 1 and below 2^31; see --help")
    return [int(part) for part in parts]
