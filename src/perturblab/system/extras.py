"""Optional packages: a check before any work starts, with the install command for missing ones."""

import importlib.util

from perturblab.errors import UserError


def require(extra: str, *packages: str, feature: str) -> None:
    """Refuse to go on without the packages of an extra; nothing is imported.

    Args:
        extra: its name in ``pip install 'perturblab[...]'``.
        packages: their import names.
        feature: the part of perturblab that needs them, such as ``--log tb``.

    Raises:
        UserError: one is missing; the message has the pip command.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{feature} needs {', '.join(missing)}; install it with pip install 'perturblab[{extra}]'")
