"""The one exception for a user's mistake, what of an error may be tracked, the name that was meant, and numbers."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

# Packages whose sentences speak of options and components alone, never of a case, a file or an address.
_OF_OPTIONS = ("adapt", "build", "errors", "fusion", "layers", "metrics", "optim", "preflight")
_IN_GENERAL = {
    "data": "the data are not there or have a fault, which the console names",
    "task": "a loss or a prediction is not finite; the console names the cases",
}


class UserError(ValueError):
    """A mistake in a config, in data or on the command line, told in one sentence and shown without a traceback."""


def public_reason(error: BaseException) -> str:
    """Return what results and trackers may hold of an error: no case, no path, nothing that data or a library wrote.

    An allow-list by the place in the code that raised it; of all other errors it says no more than their kind.
    """
    if not isinstance(error, UserError):
        return type(error).__name__
    package, _, module = _origin(error).partition(".")
    part = module.partition(".")[0] if package == __package__ else ""
    return str(error) if part in _OF_OPTIONS else _IN_GENERAL.get(part, "it was refused; the console says why")


def _origin(error: BaseException) -> str:
    """Return the module whose code raised an error; empty where nothing raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, else the list of what is known."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; possible are: {', '.join(names)}" if names else "; there are none"


def check_number(
    option: str, value: float, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    """Refuse a number that is not finite or out of range.

    Args:
        option: Its name as in yaml, e.g. ``optimizer.lr``.
        value: What was given.
        least: The lowest that is possible.
        above: A bound that is itself too low.
        below: A bound that is itself too high.

    Raises:
        UserError: Says what was given and what is possible.
    """
    low = (least is None or value >= least) and (above is None or value > above)
    if not (math.isfinite(value) and low and (below is None or value < below)):
        bounds = {"at least": least, "above": above, "below": below}
        wanted = [] if math.isfinite(value) else ["finite"]
        wanted += [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
        raise UserError(f"'{option}' must be {' and '.join(wanted)}, not {value}")
