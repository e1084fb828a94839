"""The fenced blocks of a document, and what their comments promise."""

import contextlib
import io
import re
from typing import Any


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of one kind: ```` ```kind ````."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for of, content in every if of == kind]


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, without their comments."""
    lines = [line.split("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def promised(block: str) -> list[str]:
    """Collect the expected output of a block from its comments: behind a print, or on the lines after it."""
    found, follows = [], False
    for line in block.splitlines():
        code, _, said = line.partition("  # ")
        if "print(" in code and said:
            found.append(said)
        elif follows and line.startswith("# "):
            found.append(line[2:])
            continue
        follows = "print(" in code and not said
    return found


def executed(block: str, names: dict[str, Any], name: str) -> list[str]:
    """Run a block with these names, which it adds to, and give the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, name, "exec"), names)
    return out.getvalue().splitlines()
