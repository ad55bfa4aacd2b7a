"""Reads the names of modalities and classes that users type: in any case, and by every known alias."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from prod9.errors import ConfigError

ALL = "all"
V = TypeVar("V")


def known_as(name: str, known: Sequence[str]) -> str:
    """Return the one of ``known`` that ``name`` means, or ``name`` itself if there is none.

    ``T1CE``, ``t1c`` and ``t1gd`` mean ``T1ce``, ``t2f`` means ``FLAIR``. An exact match wins.
    """
    if name in known:
        return name
    from prod9.data.layouts.names import known_as as find

    return find(name, known)


def chosen_labels(given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the labels of ``--label``, each once: all of ``known`` without it or with ``all``; raises ConfigError."""
    names = [known_as(name, known) for name in given or ()]
    if not names or any(name.casefold() == ALL and name not in known for name in names):
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"--label: expected one of {', '.join(known)}, got {', '.join(map(repr, unknown))}; the model knows no "
            f"other. {ALL} means all of them."
        )
    return list(dict.fromkeys(names))


def spelt(option: str, given: Mapping[str, V], known: Sequence[str]) -> dict[str, V]:
    """Return ``given`` with its names as spelt in ``known``; ConfigError when two mean the same."""
    found: dict[str, V] = {}
    for name, value in given.items():
        right = known_as(name, known)
        if right in found:
            raise ConfigError(f"{option}: expected one of {right}, got it twice; leave one out.")
        found[right] = value
    return found
