"""Patterns for what an error tells: names, values and the remedy, however its sentence is put."""

import re


def in_order(tokens: str) -> str:
    """Make a pattern that finds the tokens of a string in this order, each as a whole word."""
    ends = (r"(?<!\w)", r"(?!\w)")
    return ".*".join(
        ends[0] * token[0].isalnum() + re.escape(token) + ends[1] * token[-1].isalnum() for token in tokens.split()
    )
