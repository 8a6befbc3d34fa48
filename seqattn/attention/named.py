"""The short names of patterns."""

from __future__ import annotations

from seqattn.attention.pattern import Pattern
from seqattn.attention.patterns import Blocked, Dense, Dilated, Local, Neighborhood
from seqattn.attention.routing import Routing
from seqattn.errors import ParameterError, suggest

__all__ = ["PATTERNS", "as_pattern"]

PATTERNS: dict[str, type[Pattern]] = {
    pattern.name: pattern for pattern in (Dense, Local, Neighborhood, Blocked, Dilated, Routing)
}
"""The short strings that stand for a pattern with its default parameters."""


def as_pattern(pattern: str | Pattern) -> Pattern:
    """Return the pattern that a short string stands for; pattern objects pass through.

    Parameters
    ----------
    pattern
        A pattern object, or one of the names ``"dense"``, ``"local"``, ``"neighborhood"``, ``"blocked"``,
        ``"dilated"`` and ``"routing"``.

    Raises
    ------
    ParameterError
        No pattern has this name.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if pattern not in PATTERNS:
        known = ", ".join(repr(name) for name in PATTERNS)
        raise ParameterError(
            f"There is no attention pattern {pattern!r}. Patterns: {known}.{suggest(pattern, PATTERNS)}"
        )
    return PATTERNS[pattern]()
