"""Results as JSON on stdout."""

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print a result that scripts read."""
    print(json.dumps(value, indent=1))
