"""Warnings that point at the line of the user's code."""

import sys
import warnings

# Whoever calls these calls for the user.
_LIBRARIES = frozenset({"pyro_ebm", "pyro", "torch"})


def warn(message: str, category: type[Warning]) -> None:
    """Warn, as of the innermost line that is of no library, however deep the call is in ours, Pyro's and torch's."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
