"""Damage to bytes and to plain values, as disks, editors and ill will do it."""

import copy
import json
import random
from typing import Any

# Numbers, texts and containers that are easily taken for something else.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", " ", "nan", "0", "-1", "x" * 5000, "\x1b[31mred\x07", "a\nb", "<b>|x|</b>", "../../etc/passwd", "/root/.ssh"),
    *("\u202egnp.exe", "\ud800", "é", "0x10", "1e3", "yes", [], {}, [1, 2], {"a": 1}, [[[[[]]]]], [None], "null"),
)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Damage bytes: cut, flipped, zeroed, repeated, inserted or swapped."""
    spot, length = chance.randrange(len(content) or 1), chance.randrange(1, 40)
    match chance.randrange(8):
        case 0:
            return content[:spot]
        case 1:
            return content[spot:]
        case 2:
            flipped = bytearray(content)
            for _ in range(chance.randrange(1, 30)):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 3:
            return content[:spot] + bytes(length) + content[spot + length :]
        case 4:
            return content[:spot] + content[spot : spot + length] * chance.randrange(2, 9) + content[spot + length :]
        case 5:
            return content[:spot] + chance.randbytes(length) + content[spot:]
        case 6:
            return content[:spot] + b"\xff" * length + content[spot + length :]
    flipped = bytearray(content)
    flipped[spot] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside plain values."""
    if isinstance(value, dict):
        inner = [place for key, part in value.items() for place in places(part, (*above, key))]
    elif isinstance(value, list):
        inner = [place for key, part in enumerate(value) for place in places(part, (*above, key))]
    else:
        inner = []
    return [*([above] if above else []), *inner]


def changed(value: Any, chance: random.Random, odd: tuple[Any, ...] = ODD) -> tuple[Any, str]:
    """Change one place of plain values: put something odd there, remove it, or add something beside it.

    Args:
        value: dictionaries and lists.
        chance: what is changed, and how.
        odd: what may be put there.

    Returns:
        The changed copy, and what was done.
    """
    value = copy.deepcopy(value)
    where = chance.choice(places(value))
    inside = value
    for key in where[:-1]:
        inside = inside[key]
    name = ".".join(map(str, where))
    match chance.randrange(6):
        case 0:
            del inside[where[-1]]
            return value, f"without {name}"
        case 1 if isinstance(inside, dict):
            inside[chance.choice(["", "extra", "__class__", "a\nb", "\x1b[1m"])] = chance.choice(odd)
            return value, f"more beside {name}"
        case 2 if isinstance(inside[where[-1]], int | float):
            inside[where[-1]] = chance.choice([-1, 2, 10, 1000, 10**12, -(10**12)]) * (inside[where[-1]] or 1)
            return value, f"another number in {name}"
    inside[where[-1]] = chance.choice(odd)
    return value, f"something odd in {name}"


def as_json(value: Any) -> bytes:
    """JSON as a careless program writes it: NaN and lone surrogates included."""
    try:
        return json.dumps(value).encode()
    except ValueError:  # a number of more digits than Python prints
        return b'{"version": 1, "counts": ' + b"9" * 5000 + b"}"
