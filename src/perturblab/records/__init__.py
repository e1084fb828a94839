"""Records of runs: what was asked, what was measured, what it says. Nothing here imports torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perturblab.records.dataframe import frame
    from perturblab.records.record import Record
    from perturblab.records.store import load_all, load_record
else:
    _HOMES = {"Record": "record", "frame": "dataframe", "load_all": "store", "load_record": "store"}

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used, so that light commands do not wait for pydantic."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["Record", "frame", "load_all", "load_record"]
