"""Words of messages: counts with their nouns, and shortened lists."""

from collections.abc import Iterable, Sized

_SHOWN = 3


def plural(count: int | Sized, noun: str, several: str | None = None) -> str:
    """Return a count with its noun.

    count: the number, or the things to count. several: the plural of ``noun`` if it is not formed by ``s``.

    Example:
        >>> from prod9.system.wording import plural
        >>> plural(2, "patient"), plural(["a", "b"], "axis", "axes")
        ('2 patients', '2 axes')
    """
    number = count if isinstance(count, int) else len(count)
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def are(count: int | Sized) -> str:
    """Return ``is`` for one thing and ``are`` for any other number."""
    return "is" if (count if isinstance(count, int) else len(count)) == 1 else "are"


def duration(seconds: float) -> str:
    """Return a time as people say it: ``45 s``, ``12 min``, ``3.4 h`` or ``2.1 days``.

    Example:
        >>> from prod9.system.wording import duration
        >>> duration(45), duration(700), duration(12_240), duration(181_440)
        ('45 s', '12 min', '3.4 h', '2.1 days')
    """
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def listing(items: Iterable[object], shown: int = _SHOWN, *, joint: str = ", ") -> str:
    """Return ``a, b, c and 4 more``: at most ``shown`` of ``items``, and the number of the others; or ``none``."""
    texts = list(map(str, items))
    if not texts:
        return "none"
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return joint.join(texts[:shown]) + more
