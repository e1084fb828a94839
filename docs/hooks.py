"""Hooks of `make docs`: a page for every public module, and links that work on the site."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MODULE = """---
title: {0}
---

::: {0}
    options: {{heading: {0}, heading_level: 1, members: []}}
"""
NAME = """
::: {1}
    options: {{heading: {0}, toc_label: {0}}}
"""
# In these sections a name in backticks is a public one; elsewhere it may be a command or a variable.
NAMING = re.compile(r"(?<=^## )(?:API|Public names)$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Add a page for every public module, make the guide the start page, fill in the navigation."""
    for module, names in public().items():
        content = MODULE.format(module) + "".join(NAME.format(*item) for item in names.items())
        files.append(File.generated(config, f"api/{module.removeprefix('perturblab.')}.md", content=content))
    start = files.src_uris["guide.md"]
    start.name, start.dest_uri, start.url = "index", "index.html", "index.html"
    config.nav = fill_nav(config.nav or [], [file.src_uri for file in files.documentation_pages()])


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Link public names to their docstrings; replace a link that leaves docs/ by its text."""
    folder, paths = dirname(page.file.src_uri), dict[str, str]()
    for module, names in public().items():
        paths |= {module: module, **names}

    def keep_inside(link: re.Match[str]) -> str:
        return link[1] if normpath(join(folder, link[2])).startswith("../") else link[0]

    def add_link(span: re.Match[str]) -> str:
        return f"[{span[0]}][{paths[span[1]]}]" if span[1] in paths else span[0]

    markdown = re.sub(r"\[([^\]]+)\]\((\.\./[^)]+)\)", keep_inside, markdown)
    return NAMING.sub(lambda part: re.sub(r"`([\w.]+)(?:\([^`]*\))?`", add_link, part[0]), markdown)


def fill_nav(nav: list[Any], pages: list[str]) -> list[Any]:
    """Replace the patterns of the navigation by existing pages, and drop empty sections."""
    full = []
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if isinstance(value, list):
            value = fill_nav(value, pages)
        elif "*" in value:
            value = [page for page in pages if fnmatch(page, value)]
        full += [{title: value} if title else value] if value else []
    return full


def public() -> dict[str, dict[str, str]]:
    """List the public names of api.md by module, each with the path of its definition."""
    names_of: dict[str, dict[str, str]] = {}
    (listed,) = NAMING.findall((ROOT / "docs" / "api.md").read_text())
    for part in listed.split("\n### ")[1:]:
        for row in re.findall(r"^\| (`.+) \|$", part, re.MULTILINE):
            cells = [re.findall(r"`([\w.]+)`", cell) for cell in row.split(" | ")]
            module, names = (
                (cells[0][0], cells[1]) if part.startswith("Elsewhere") else (re.split(r"[:\n]", part)[0], cells[0])
            )
            names_of.setdefault(module, {}).update({name: f"{home(module, name)}.{name}" for name in names})
    return names_of


def home(module: str, name: str) -> str:
    """Find the module from which a package takes a name: `batchout` of the layers is a function and also a file."""
    package = ROOT / "src" / Path(*module.split(".")) / "__init__.py"
    for node in ast.walk(ast.parse(package.read_text())) if package.exists() else []:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return str(node.module)
    return module
