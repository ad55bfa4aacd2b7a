"""The names of modalities: those of prod9, and the other spellings that people and data sets use for them."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from prod9.errors import ConfigError

V = TypeVar("V")
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
DEFAULT_LABEL_MAP: Mapping[str, int] = {name: label for label, name in enumerate(MODALITIES)}
SEG = "seg"
MOST_LABELS = 4
"""Labels that a segmentation may have in a label map; BraTS 2024 has as many."""
LABEL_MAP_CLASSES = 2 + MOST_LABELS
"""Classes of a label map: outside, brain, and the labels."""

TOKENS: Mapping[str, str] = {
    **dict.fromkeys(("t1gd", "t1gad", "t1ce", "t1c", "ct1", "t1_gd", "t1-gd", "t1_ce", "t1-ce"), "T1ce"),
    **dict.fromkeys(("t1n", "t1w", "t1"), "T1"),
    **dict.fromkeys(("flair", "fla", "t2f", "t2flair", "t2_flair", "t2-flair"), "FLAIR"),
    **dict.fromkeys(("t2w", "t2"), "T2"),
    **dict.fromkeys(("segm", "seg"), SEG),
}
"""Last word of a file's name, or what a user types, in lower case → its meaning."""


def known_as(name: str, known: Sequence[str]) -> str:
    """Return the one of ``known`` that ``name`` means, or ``name`` itself if there is none.

    ``T1CE``, ``t1c`` and ``t1gd`` mean ``T1ce``, ``t2f`` means ``FLAIR``. An exact match wins.
    """
    if name in known:
        return name
    asked = name.strip().casefold()
    alike = [one for one in known if one.casefold() == asked]
    alike = alike or [one for one in known if one == TOKENS.get(asked)]
    return alike[0] if len(alike) == 1 else name


def spelt(what: str, given: Mapping[str, V], known: Sequence[str]) -> dict[str, V]:
    """Return ``given`` with its names as spelt in ``known``; ConfigError, about ``what``, when two mean the same."""
    found: dict[str, V] = {}
    for name, value in given.items():
        right = known_as(name, known)
        if right in found:
            raise ConfigError(f"{what}: expected one of {right}, got it twice; leave one out.")
        found[right] = value
    return found


MOST_OF_GLIOMA = 3
"""The highest label of a patient of BraTS 2023; a resection cavity, label 4, is tissue there."""
