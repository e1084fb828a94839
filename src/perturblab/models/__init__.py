"""The published nets by name; `build(name, **options)` makes one."""

from perturblab.models.build import NETS, build, options_read, resolve
from perturblab.models.describe import describe
from perturblab.models.sites import published_sites
from perturblab.models.skeleton import Task

__all__ = ["NETS", "Task", "build", "describe", "options_read", "published_sites", "resolve"]
