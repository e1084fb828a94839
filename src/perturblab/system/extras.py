"""Packages that only some commands need: asked for before any work is done, and named when they are missing."""

import importlib.util

from perturblab.errors import UserError


def require(extra: str, *packages: str, what: str) -> None:
    """Make sure that the packages of an extra are there, without importing them.

    Args:
        extra: its name in ``pip install 'perturblab[...]'``.
        packages: names as they are imported.
        what: what needs them, such as ``--log tb``.

    Raises:
        UserError: one is missing; the text has the pip command.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}, which is missing; say pip install 'perturblab[{extra}]'")
