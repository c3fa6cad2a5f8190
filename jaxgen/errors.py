"""Errors that a person can act on."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input: a file, a field or a flag. The message is one line that names it and says what to do.

    The front door prints the message alone and exits with code 2; nothing is left half-written.
    """


def nearest(name: str, choices: Iterable[str], listed: Iterable[str] = ()) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`; when none is close a list of `listed`, by default of all choices."""
    close = difflib.get_close_matches(name, choices := sorted(choices), n=1, cutoff=0.65)
    if close:
        return f"; did you mean {close[0]!r}?"
    choices = sorted(listed) or choices
    return f"; choose one of {', '.join(choices)}" if choices else ""


def short(error: Exception) -> str:
    """Kind and text of somebody else's error, on one line and cut short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
