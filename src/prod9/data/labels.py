"""What the numbers of a segmentation mean, by the scheme they were written in.

Canonical labels are 1 necrotic core, 2 oedema, 3 enhancing tumour, 4 resection cavity. A scheme is a key of
``LABEL_SCHEMES``, or a table of one's own written as ``"0=0, 1=2, 2=1, 3=3"`` (value in the file = canonical label).
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from prod9.errors import ConfigError, DataError

_UP_TO_2021 = {0: 0, 1: 1, 2: 2, 4: 3}
AS_IS = "as_is"
LABEL_SCHEMES: Mapping[str, Mapping[int, int]] = {
    "brats2018": _UP_TO_2021,
    "brats2019": _UP_TO_2021,
    "brats2020": _UP_TO_2021,
    "brats2021": _UP_TO_2021,
    "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
    # Post-treatment scans are named as in 2023, and 4 is their resection cavity. It is never guessed: a relabelled
    # copy of the older sets may hold 4 as the enhancing tumour.
    "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4},
    # The Decathlon's Task01 counts from the oedema.
    "msd_task01": {0: 0, 1: 2, 2: 1, 3: 3},
    "canonical": {0: 0, 1: 1, 2: 2, 3: 3},
    # Labels of something else than a glioma: kept as they are.
    AS_IS: {value: value for value in range(256)},
}
"""Label values of a file → canonical labels."""
_NOT_A_LABEL = -1
_LABEL_TOLERANCE = 1e-3
_PAIR = re.compile(r"\s*(\d+)\s*=\s*(\d+)\s*")

# Words of dataset descriptions → canonical label; "non-enhancing" is asked before "enhancing".
_WORDS = (
    (0, re.compile(r"^back ?ground$", re.IGNORECASE)),
    (2, re.compile(r"(o?edema|\bsnfh\b|\bed\b)", re.IGNORECASE)),
    (1, re.compile(r"(necro|non[- _]?enhanc|\bncr\b|\bnetc?\b)", re.IGNORECASE)),
    (4, re.compile(r"(resection|cavity|\brc\b)", re.IGNORECASE)),
    (3, re.compile(r"(enhanc|\bet\b)", re.IGNORECASE)),
)


def label_table(scheme: str) -> Mapping[int, int]:
    """Return value in the file → canonical label; ConfigError when ``scheme`` is neither a name nor a table."""
    if scheme in LABEL_SCHEMES:
        return LABEL_SCHEMES[scheme]
    pairs = [_PAIR.fullmatch(part) for part in scheme.split(",")]
    if not all(pairs):
        raise ConfigError(
            f"data.label_scheme: expected auto, one of {', '.join(LABEL_SCHEMES)}, or a table such as "
            f'"0=0, 1=2, 2=1, 3=3", got {scheme}; correct it.'
        )
    table = {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
    if max(*table, *table.values()) > 255:
        raise ConfigError(f"data.label_scheme: expected labels up to 255, got {scheme}; correct it.")
    return {0: 0, **table}


def scheme_from_names(names: Mapping[str, int | Collection[int]]) -> str:
    """Return the scheme of a dataset that names its labels, such as ``{"edema": 1, …}``.

    nnU-Net's nested regions (``{"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}``) are taken
    apart: what only the whole holds is oedema, what only the core adds is necrosis. ``as_is`` where a name is of
    no glioma.
    """
    if any(not isinstance(value, int) for value in names.values()):
        return _scheme_from_regions(names)
    table = {}
    for name, value in names.items():
        label = next((label for label, words in _WORDS if words.search(name)), None)
        if label is None or label in table.values():
            return AS_IS
        table[int(value)] = label  # type: ignore[arg-type]  # an int: checked above
    return _spelt(table)


def fitting_schemes(values: Collection[int]) -> list[str]:
    """Return the names of the schemes that know all ``values``, leaving out ``as_is``."""
    return [name for name, table in LABEL_SCHEMES.items() if name != AS_IS and set(values) <= set(table)]


def canonical_seg(values: np.ndarray, scheme: str, path: str | Path) -> np.ndarray:
    """Map a segmentation of ``scheme`` to canonical labels, uint8 of the same shape.

    Values within 1e-3 of an integer count as it. Raises DataError, naming ``path``, the values and how many
    voxels hold them, where a value does not belong to the scheme.
    """
    table = label_table(scheme)
    lookup = np.full(
        max(table) + 2, _NOT_A_LABEL, dtype=np.int16
    )  # its last place is for what is out of range
    lookup[list(table)] = list(table.values())
    finite = np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1)
    rounded = np.rint(finite)
    in_range = (rounded >= 0) & (rounded <= max(table)) & (np.abs(finite - rounded) <= _LABEL_TOLERANCE)
    labels = lookup[np.where(in_range, rounded, -1).astype(np.int16)]
    strange, counts = np.unique(values[labels == _NOT_A_LABEL], return_counts=True)
    if strange.size:
        got = ", ".join(f"{v:g} ({n} voxels)" for v, n in zip(strange[:5], counts[:5], strict=True))
        expected = sorted(table) if len(table) < 10 else f"0 to {max(table)}"
        raise DataError(
            f"{path}: expected labels {expected} of scheme {scheme}, got {got}; {_remedy(np.unique(rounded))}."
        )
    return labels.astype(np.uint8)


def _remedy(seen: np.ndarray) -> str:
    fitting = fitting_schemes([int(value) for value in seen])
    if not fitting:
        return "repair the segmentation, or say what each value means with data.label_scheme"
    known = ", ".join(fitting)
    return f"the values fit {known}: set data.label_scheme to what the data are, or repair the segmentation"


def _scheme_from_regions(names: Mapping[str, int | Collection[int]]) -> str:
    regions = {name: {v} if isinstance(v, int) else set(v) for name, v in names.items()}
    by_size = sorted((values for values in regions.values() if values != {0}), key=len, reverse=True)
    if len(by_size) != 3 or not by_size[0] > by_size[1] > by_size[2]:
        return AS_IS
    whole, core, enhancing = by_size
    table = {0: 0} | dict.fromkeys(whole - core, 2) | dict.fromkeys(core - enhancing, 1)
    return _spelt(table | dict.fromkeys(enhancing, 3))


def _spelt(table: Mapping[int, int]) -> str:
    """Return the name of ``table`` where it has one, else its text."""
    known = next((name for name in ("canonical", "msd_task01", "brats2021", "brats2024") if
                  dict(LABEL_SCHEMES[name]) == dict(table)), None)  # fmt: skip
    return known or ",".join(f"{value}={label}" for value, label in sorted(table.items()))
