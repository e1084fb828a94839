"""Errors; each is a subclass of the built-in exception that a caller would catch."""


class UserError(ValueError):
    """A mistake of the user: one sentence with the name, the value, the expected one and the remedy.

    The command line prints it on one line of stderr and exits with code 2.
    """


class DataError(UserError):
    """A data set that is missing, unreadable or inconsistent."""


class RankLostError(RuntimeError):
    """The end of another process of the same run, which can be resumed."""


class NonFiniteError(ArithmeticError):
    """A loss or logits that are not finite; they are never recorded as a result."""


def one_line(text: str) -> str:
    """Reduce text to one line of printable characters: no label or file name may control a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
