"""``python docs/gallery/pages.py [NAME ...]``: run gallery scripts and write the page and picture of each."""

import argparse
import contextlib
import importlib
import io
import re
import time
from pathlib import Path

from matplotlib import pyplot

from perturblab.records.pictures.style import svg
from perturblab.system.files import write_atomically
from perturblab.system.memory import keep_freed_memory

HERE = Path(__file__).parent
SCRIPTS = ("masks", "one_mask_one_input", "neighbours", "arrangement", "metric_audit", "batchout_under_attack")


def main() -> None:
    """Run the named scripts, in full or small size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=SCRIPTS, choices=SCRIPTS, metavar="NAME")
    parser.add_argument("--small", action="store_true", help="a few images and epochs: to see that it runs")
    parser.add_argument("--dataroot", default="data", help="folder to search for data sets first [data]")
    parser.add_argument("--to", type=Path, default=HERE, metavar="DIR", help="folder for pages and pictures")
    args = parser.parse_args()
    keep_freed_memory()
    for name in args.names:
        began = time.perf_counter()
        make(name, small=args.small, dataroot=args.dataroot, to=args.to)
        print(f"{args.to / name}.md, .svg: {time.perf_counter() - began:.0f} s")


def make(name: str, *, small: bool, dataroot: str, to: Path) -> None:
    """Run one script, and write its text and figure as ``NAME.md`` and ``NAME.svg``.

    Args:
        name: of `SCRIPTS`. Its docstring is the text of the page; its ``draw`` prints Markdown and returns a figure.
        small: with the settings ``SMALL`` of the script instead of ``FULL``.
        dataroot: the folder to search for data sets first.
        to: folder for both.
    """
    script = importlib.import_module(name)
    title, text = (script.__doc__ or "").split("\n", 1)
    settings = script.SMALL if small else script.FULL
    with contextlib.redirect_stdout(io.StringIO()) as output:
        picture = svg(lambda: script.draw(dataroot, **settings), {"figure.constrained_layout.use": True}).decode()
    pyplot.close("all")
    to.mkdir(parents=True, exist_ok=True)
    source = f"Made by `python docs/gallery/pages.py {name}` ([{name}.py]({name}.py))."
    parts = [f"# {title.rstrip('.')}", text.strip(), f"![{title}]({name}.svg)", output.getvalue().strip(), source]
    write_atomically(to / f"{name}.md", ("\n\n".join(parts) + "\n").encode())
    write_atomically(to / f"{name}.svg", re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE).encode())


if __name__ == "__main__":
    main()
