"""The command report: a page of all records, or tables of them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.arguments import Parser
from perturblab.errors import UserError
from perturblab.system.exit_codes import DONE

if TYPE_CHECKING:
    from perturblab.records.results import Result

Add = Callable[[str, Callable[[argparse.Namespace], int], str], Parser]


def add_command(add: Add) -> None:
    """Add the command.

    Args:
        add: makes a command's parser from its name, function and help.
    """
    reported = add("report", _report, "Write a page of all records below a folder, or tables of them.")
    reported.add_argument("folder", metavar="DIR", nargs="?", default="results", help="folder of the records [results]")
    reported.add_argument("-o", "--output", metavar="FILE", help="the page [report.html]")
    reported.add_argument("--markdown", action="store_true", help="Markdown tables of claims and figures instead")
    reported.add_argument("--tag", metavar="T", help="with --markdown: only what has this tag, such as dispute")
    reported.add_argument("--groups", action="store_true", help="a table of groups of seeds instead")
    reported.add_argument("--attacks", action="store_true", help="Markdown tables of the attacked runs instead")
    reported.add_argument(
        "--control", metavar="LABEL", help="with --groups or --attacks: the group that the others are compared with"
    )
    reported.add_argument("--into", metavar="FILE", help="write the Markdown between the markers of this file")


def _report(args: argparse.Namespace) -> int:
    from perturblab.records import results
    from perturblab.report import attacks_table, claims_table, groups_table, volatility_table

    _check_report_flags(args)
    runs, void = results.load_results(Path(args.folder)), results.load_void(Path(args.folder))
    for line in void:
        print(line, file=sys.stderr)
    if args.attacks:
        tables = (attacks_table.attacks_markdown, volatility_table.volatility_markdown)
        text = "\n".join(table(runs, args.control) for table in tables)
    elif args.groups:
        text = groups_table.groups_markdown([run.record for run in runs], args.control)
    elif args.markdown:
        text = claims_table.claims_markdown(runs, args.tag)
    else:
        return _page(runs, void, Path(args.folder), Path(args.output or "report.html"))
    if args.into:
        _write_between_markers(Path(args.into), text)
    elif args.groups and not args.markdown and runs:
        _print_table(runs, args.control)
    else:
        print(text, end="")
    return DONE


def _check_report_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that the chosen form does not read."""
    table = args.markdown or args.groups or args.attacks
    if args.attacks and args.groups:
        raise UserError("--attacks and --groups exclude each other; choose one")
    for flag, value, read in (
        ("--output", args.output, not table),
        ("--into", args.into, table),
        ("--control", args.control, args.groups or args.attacks),
        ("--tag", args.tag, args.markdown and not args.groups and not args.attacks),
    ):
        if value is not None and not read:
            raise UserError(f"{flag} {value} has no effect here; perturblab report --help names the flag it needs")


def _page(runs: "list[Result]", void: list[str], folder: Path, output: Path) -> int:
    from perturblab.records import results
    from perturblab.report import page
    from perturblab.system.files import write_atomically

    write_atomically(output, page.page(runs, results.load_failed(folder), void).encode())
    for answer in page.answers_of(runs):
        print(f"{answer.question} {answer.word}.")
    print(f"{len(runs)} records; open {output} in a browser")
    return DONE


def _print_table(runs: "list[Result]", control: str | None) -> None:
    from rich.console import Console

    from perturblab.report import groups_table

    console = Console()
    with console.capture() as shown:
        console.print(groups_table.rich_table([run.record for run in runs], control))
    print(shown.get(), end="")


def _write_between_markers(path: Path, table: str) -> None:
    from perturblab.report import groups_table
    from perturblab.system.files import write_atomically

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--into {path} cannot be read ({type(error).__name__}); give a text file with markers"
        ) from error
    try:
        text = groups_table.update_between_markers(text, table)
    except UserError as error:
        raise UserError(f"--into {path}: {error}") from error
    write_atomically(path, text.encode())
