"""Exit codes, and how results are printed."""

import json
from typing import Any

DONE, BUG, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
