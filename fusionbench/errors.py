"""The one exception for a user's mistake, the search for the name that was meant, and the check of a number."""

import math
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in a config, in data or on the command line, told in one sentence and shown without a traceback."""


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
