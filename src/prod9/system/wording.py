"""Words of messages: counts with their nouns, and lists that are cut where they get long."""

from collections.abc import Iterable, Sized

_SHOWN = 3


def plural(count: int | Sized, noun: str, several: str | None = None) -> str:
    """Return ``1 patient`` or ``2 patients``.

    count: the number, or the things to count. several: the plural of ``noun`` where it is more than an ``s``.
    """
    number = count if isinstance(count, int) else len(count)
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def are(count: int | Sized) -> str:
    """Return ``is`` for one thing and ``are`` for any other number."""
    return "is" if (count if isinstance(count, int) else len(count)) == 1 else "are"


def listing(items: Iterable[object], shown: int = _SHOWN, *, joint: str = ", ") -> str:
    """Return ``a, b, c and 4 more``: at most ``shown`` of ``items``, and how many are left out; ``none`` for none."""
    texts = list(map(str, items))
    if not texts:
        return "none"
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return joint.join(texts[:shown]) + more
