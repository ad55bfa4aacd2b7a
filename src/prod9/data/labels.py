"""Label schemes: what the values of a segmentation mean.

Canonical labels are 1 necrotic core (with all tumour that does not enhance), 2 oedema, 3 enhancing tumour, 4 resection
cavity. A scheme is a key of ``LABEL_SCHEMES``, or a table such as ``"0=0, 1=2, 2=1, 3=3"`` (value in the file =
canonical label). The same values mean different things in different schemes, so a scheme is never chosen by the values
of a file; see :func:`readings` and :func:`doubt`.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from prod9.errors import ConfigError, DataError
from prod9.html.labels import LABEL_NAMES
from prod9.system.wording import plural

_UP_TO_2021 = {0: 0, 1: 1, 2: 2, 4: 3}
AS_IS = "as_is"
WHOLE_TUMOR = "whole_tumor"
WRITTEN = "brats2024"
"""Scheme of the segmentations that prod9 writes: canonical labels, the resection cavity too."""
LABEL_SCHEMES: Mapping[str, Mapping[int, int]] = {
    # 2012 to 2015: 3 is the part of the tumour that does not enhance, which is part of the core in later years.
    "brats2015": {0: 0, 1: 1, 2: 2, 3: 1, 4: 3},
    "brats2018": _UP_TO_2021,
    "brats2019": _UP_TO_2021,
    "brats2020": _UP_TO_2021,
    "brats2021": _UP_TO_2021,
    "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
    # Scans after treatment, with file names as in 2023; 4 is the resection cavity. This scheme is never guessed, since
    # a copy of the older sets with new names may use 4 for the enhancing tumour.
    "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4},
    # Task01 of the Decathlon begins with the oedema.
    "msd_task01": {0: 0, 1: 2, 2: 1, 3: 3},
    "canonical": {0: 0, 1: 1, 2: 2, 3: 3},
    # Masks of the whole tumour, often written as 255; here, 1 means the whole tumour, not necrosis.
    WHOLE_TUMOR: {0: 0, 1: 1, 255: 1},
    # Labels of anything but a glioma.
    AS_IS: {value: value for value in range(256)},
}
"""Label values of a file → canonical labels."""
_TO_2021 = {1: "necrosis", 2: "oedema", 4: "enhancing tumour"}
_FROM_2023 = {1: "necrosis", 2: "oedema", 3: "enhancing tumour"}
_MEANINGS: Mapping[str, Mapping[int, str]] = {
    "brats2015": {1: "necrosis", 2: "oedema", 3: "non-enhancing tumour", 4: "enhancing tumour"},
    "brats2018": _TO_2021,
    "brats2019": _TO_2021,
    "brats2020": _TO_2021,
    "brats2021": _TO_2021,
    "brats2023": _FROM_2023,
    "brats2024": {**_FROM_2023, 4: "resection cavity"},
    "msd_task01": {1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"},
    "canonical": _FROM_2023,
    WHOLE_TUMOR: {1: "the whole tumour", 255: "the whole tumour"},
}
"""What each value of a scheme shows, except for the background."""
_NOT_A_LABEL = -1
_LABEL_TOLERANCE = 1e-3
_MAX_LABEL = 255
_PAIR = re.compile(r"\s*(\d+)\s*=\s*(\d+)\s*")

_BACKGROUND = re.compile(r"^back ?ground$", re.IGNORECASE)
_WHOLE = re.compile(
    r"(?:brain[-_ ]?)?(?:whole[-_ ]?)?(?:tumou?rs?|lesions?|gliomas?|cancer|wt)(?:[-_ ]?(?:mask|region))?",
    re.IGNORECASE,
)
# Words of dataset descriptions → canonical label; "non-enhancing" is tried before "enhancing".
_WORDS = (
    (0, _BACKGROUND),
    (2, re.compile(r"(o?edema|\bsnfh\b|\bed\b)", re.IGNORECASE)),
    (1, re.compile(r"(necro|non[- _]?enhanc|\bncr\b|\bnetc?\b)", re.IGNORECASE)),
    (4, re.compile(r"(resection|cavity|\brc\b)", re.IGNORECASE)),
    (3, re.compile(r"(enhanc|\bet\b)", re.IGNORECASE)),
)


def canonical_names(schemes: Collection[str]) -> dict[int, str]:
    """Return canonical label → what it shows, in data of ``schemes``; labels of unknown meaning have no name."""
    if WHOLE_TUMOR in schemes:
        both = "whole tumour" if len(set(schemes)) == 1 else f"whole tumour, or {LABEL_NAMES[1]}"
        return {**(LABEL_NAMES if len(set(schemes)) > 1 else {}), 1: both}
    return {} if AS_IS in schemes else dict(LABEL_NAMES)


def label_table(scheme: str) -> Mapping[int, int]:
    """Return value in the file → canonical label; ConfigError if ``scheme`` is neither a name nor a table."""
    if scheme in LABEL_SCHEMES:
        return LABEL_SCHEMES[scheme]
    pairs = [_PAIR.fullmatch(part) for part in scheme.split(",")]
    if not all(pairs):
        raise ConfigError(
            f"data.label_scheme: expected auto, one of {', '.join(LABEL_SCHEMES)}, or a table such as "
            f'"0=0, 1=2, 2=1, 3=3", got {scheme}; correct it.'
        )
    table = {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
    if len(table) < len(pairs):
        raise ConfigError(f"data.label_scheme: expected each value once, got {scheme}; correct it.")
    if max(*table, *table.values()) > _MAX_LABEL:
        raise ConfigError(f"data.label_scheme: expected labels up to 255, got {scheme}; correct it.")
    return {0: 0, **table}


def declared_scheme(labels: object) -> str | None:
    """Return the scheme of the labels in a dataset description, value → name (Decathlon) or name → value (nnU-Net).

    None if ``labels`` is empty or no table; ``as_is`` if its words are unknown or describe no glioma.
    """
    if not isinstance(labels, dict) or not labels:
        return None
    try:
        if all(str(key).isdecimal() for key in labels):
            return scheme_from_names({str(name): int(value) for value, name in labels.items()})
        named = {str(n): v if isinstance(v, list) else int(v) for n, v in labels.items() if n != "ignore"}
        return scheme_from_names(named)
    except (TypeError, ValueError, OverflowError):  # OverflowError: JSON may hold Infinity
        return AS_IS


def scheme_from_names(names: Mapping[str, int | Collection[int]]) -> str:
    """Return the scheme of a dataset that names its labels, such as ``{"edema": 1, …}``.

    From nnU-Net's nested regions (``{"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}``), values
    of the whole tumour outside the core are oedema, and values of the core that do not enhance are necrosis. A single
    label named tumour or lesion gives ``whole_tumor``. A name that describes no glioma gives ``as_is``.
    """
    if any(not isinstance(value, int) for value in names.values()):
        return _scheme_from_regions(names)
    values = {name: int(value) for name, value in names.items() if isinstance(value, int)}
    shown = {value: name for name, value in values.items() if not _BACKGROUND.search(name)}
    if shown.keys() == {1} and _WHOLE.fullmatch(shown[1].strip()):
        return WHOLE_TUMOR
    table: dict[int, int] = {}
    for name, value in values.items():
        label = next((label for label, words in _WORDS if words.search(name)), None)
        # Necrosis and non-enhancing tumour are one canonical label; for any other, a second name is not understood.
        if label is None or (label in table.values() and label != 1) or not 0 <= value <= _MAX_LABEL:
            return AS_IS
        table[value] = label
    return _spelt(table)


def fitting_schemes(values: Collection[int]) -> list[str]:
    """Return the names of the schemes that contain all ``values``, except for ``as_is``."""
    return [name for name, table in LABEL_SCHEMES.items() if name != AS_IS and set(values) <= set(table)]


def readings(values: Collection[int]) -> dict[str, list[str]]:
    """Return what ``values`` may mean, as text → the schemes with this meaning; several entries are an ambiguity.

    The background does not count: ``{1}`` may be necrosis, oedema or the whole tumour.
    """
    shown = sorted(set(values) - {0})
    found: dict[str, list[str]] = {}
    for scheme in fitting_schemes(values):
        text = ", ".join(f"{value} {_MEANINGS[scheme][value]}" for value in shown)
        found.setdefault(text, []).append(scheme)
    return found


def doubt(values: Collection[int], scheme: str) -> str | None:
    """Return the other meanings of ``values`` than that of ``scheme``, as a warning; None if none is likely.

    For schemes that were found by names or taken by default, not for those that a user has set. Masks of 0 and 1 are
    doubtful in every scheme, since they rarely show necrosis; other values are doubtful only in scheme ``canonical``,
    where the name of a challenge is missing. ``values``: of one file, or better of a whole dataset.
    """
    shown = set(values) - {0}
    if not shown or scheme not in _MEANINGS or scheme == WHOLE_TUMOR or not shown <= set(_MEANINGS[scheme]):
        return None
    is_mask = shown == {1}
    if not is_mask and scheme != "canonical":
        return None
    others = {text: schemes for text, schemes in readings(shown).items() if scheme not in schemes}
    if not others:
        return None
    mine = ", ".join(f"{value} {_MEANINGS[scheme][value]}" for value in sorted(shown))
    listed = "; ".join(f"{schemes[-1]}: {text}" for text, schemes in others.items())
    return (
        f"the values {', '.join(map(str, sorted({0} | shown)))} are read by scheme {scheme} ({mine}), and may as well "
        f"mean {listed}; set data.label_scheme (--label-scheme) to the scheme of the data"
    )


def canonical_seg(values: np.ndarray, scheme: str, path: str | Path) -> np.ndarray:
    """Map a segmentation of ``scheme`` to canonical labels, uint8 of the same shape.

    Values within 1e-3 of an integer are rounded. If a value does not belong to the scheme, raises DataError with
    ``path``, the values and their numbers of voxels.
    """
    table = label_table(scheme)
    # The last place is for values out of range.
    lookup = np.full(max(table) + 2, _NOT_A_LABEL, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    finite = np.nan_to_num(values, nan=-1, posinf=-1, neginf=-1)
    rounded = np.rint(finite)
    in_range = (rounded >= 0) & (rounded <= max(table)) & (np.abs(finite - rounded) <= _LABEL_TOLERANCE)
    labels = lookup[np.where(in_range, rounded, -1).astype(np.int16)]
    strange, counts = np.unique(values[labels == _NOT_A_LABEL], return_counts=True)
    if strange.size:
        got = ", ".join(
            f"{v:g} ({plural(int(n), 'voxel')})" for v, n in zip(strange[:5], counts[:5], strict=True)
        )
        expected = sorted(table) if len(table) < 10 else f"0 to {max(table)}"
        raise DataError(
            f"{path}: expected labels {expected} of scheme {scheme}, got {got}; {_remedy(np.unique(rounded))}."
        )
    return labels.astype(np.uint8)


def _remedy(seen: np.ndarray) -> str:
    fitting = readings([int(value) for value in seen])
    if not fitting:
        return "repair the segmentation, or define what each value means with data.label_scheme"
    known = "; ".join(f"{text or 'background only'} in {', '.join(names)}" for text, names in fitting.items())
    return (
        f"the values fit {known}: set data.label_scheme to the scheme of the data, or repair the segmentation"
    )


def _scheme_from_regions(names: Mapping[str, int | Collection[int]]) -> str:
    regions = {name: {v} if isinstance(v, int) else set(v) for name, v in names.items()}
    by_size = sorted((values for values in regions.values() if values != {0}), key=len, reverse=True)
    if len(by_size) != 3 or not by_size[0] > by_size[1] > by_size[2]:
        return AS_IS
    whole, core, enhancing = by_size
    table = {0: 0} | dict.fromkeys(whole - core, 2) | dict.fromkeys(core - enhancing, 1)
    table |= dict.fromkeys(enhancing, 3)
    return _spelt(table) if all(0 <= value <= _MAX_LABEL for value in table) else AS_IS


def _spelt(table: Mapping[int, int]) -> str:
    """Return the name of ``table`` if it has one, otherwise its text."""
    table = {0: 0, **table}
    for name in ("canonical", "msd_task01", "brats2021", "brats2024", "brats2015"):
        if LABEL_SCHEMES[name] == table:
            return name
    return ",".join(f"{value}={label}" for value, label in sorted(table.items()))
