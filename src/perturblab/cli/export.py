"""The command `export`: a finished run as an ONNX file, or in the layout of the hub."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.arguments import Parser
from perturblab.errors import UserError
from perturblab.system.exit_codes import DONE, FAILED

if TYPE_CHECKING:
    from perturblab.system.terminal import Show


def add_commands(command: Callable[[str, Callable[[argparse.Namespace], int], str], Parser]) -> None:
    """Add the command `export`.

    Args:
        command: adds a command: name, what runs it, one line about it.
    """
    added = command("export", _export, "Export a run's net: an ONNX file, or the layout of the hub.")
    added.add_argument("folder", metavar="RUN", help="a run's folder")
    added.add_argument("--onnx", metavar="FILE", help="one file, any batch size, compared with the net on test images")
    added.add_argument("--pretrained", metavar="DIR", help="new folder: config.json, model.safetensors, model card")
    added.add_argument("--push", metavar="USER/NAME", help="upload that folder to the hub (with --pretrained)")
    added.add_argument("--private", action="store_true", help="to a private repository")
    added.add_argument("--dataroot", help="where the data set is looked for first [the run's]")
    added.add_argument("--quiet", action="store_true", help="no progress")


def _export(args: argparse.Namespace) -> int:
    if not (args.onnx or args.pretrained):
        raise UserError("export got no format; say --onnx FILE or --pretrained DIR")
    if args.push and not args.pretrained:
        raise UserError("--push uploads what --pretrained has made; give --pretrained DIR too")
    from perturblab.system.terminal import Show

    run, show = Path(args.folder), Show(quiet=args.quiet)
    if args.onnx and (code := _onnx(run, Path(args.onnx), show, args.dataroot)):
        return code
    if args.pretrained:
        _pretrained(run, args, show)
    return DONE


def _onnx(run: Path, path: Path, show: "Show", dataroot: str | None) -> int:
    from perturblab.runs.export.onnx import MismatchError, export_onnx

    try:
        found = export_onnx(run, path, show, dataroot=dataroot)
    except MismatchError as error:
        show.warn(f"perturblab: failed check: {error}")
        return FAILED
    print(
        f"{path}: largest difference of a logit {found.largest:.3g} (largest logit {found.scale:.3g}) on "
        f"{found.images} test images, {found.agreeing} same answers"
    )
    return DONE


def _pretrained(run: Path, args: argparse.Namespace, show: "Show") -> None:
    from perturblab.runs.export.hub import push_to_hub, save_pretrained

    # A push that failed is said again: what was saved before it is pushed then.
    folder = save_pretrained(run, Path(args.pretrained), show=show, dataroot=args.dataroot, exist_ok=bool(args.push))
    print(f"{folder}: config.json, model.safetensors, README.md")
    if args.push:
        print(push_to_hub(folder, args.push, private=args.private))
