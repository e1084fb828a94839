"""Errors that a user can cause; each is a subclass of the built-in exception that a caller would catch."""


class UserError(ValueError):
    """A mistake of the user: one sentence that says what, got, expected and the remedy.

    The command line prints it on one line of stderr and exits with code 2.
    """


class DataError(UserError):
    """A data set that is missing, unreadable or inconsistent."""


class RankLostError(RuntimeError):
    """Another process of the same run has ended; the run can be resumed."""


class NonFiniteError(ArithmeticError):
    """A loss or logits that are not finite; nothing may be recorded as a result."""


def one_line(text: str) -> str:
    """Give one line of printable characters; a terminal must not be steered by a label or a file name."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
