"""Division of the patients into training, validation and test; all cases of a patient are in one part."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.cases import PARTS as PARTS
from prod9.data.cases import Case, Part
from prod9.errors import ConfigError, DataError
from prod9.files import atomic_write
from prod9.json_files import read_json
from prod9.system.wording import are, listing, plural

_FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Patient ids of each part, sorted; no patient is in two parts.

    Example:
        >>> from prod9.data.splits import Split
        >>> split = Split(train=("P1", "P2"), val=("P3",), test=("P4",))
        >>> split.to_dict()
        {'train': ['P1', 'P2'], 'val': ['P3'], 'test': ['P4']}
        >>> split.trained_elsewhere(Split(train=("P1", "P4"), val=("P2",), test=("P3",)))
        ['P4']
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = Counter((*self.train, *self.val, *self.test))
        twice = sorted(patient for patient, n in counts.items() if n > 1)
        if twice:
            raise DataError(
                f"expected each patient in one part of the split, got {listing(twice, 5)} in several; correct it."
            )

    def select(self, cases: Iterable[Case], part: Part) -> list[Case]:
        """Return the cases whose patient belongs to ``part``, in the order given."""
        patients = frozenset(getattr(self, part))
        return [case for case in cases if case.patient_id in patients]

    def check(self, cases: Iterable[Case], *, source: str) -> None:
        """Raise DataError, with the origin ``source``, unless the split holds exactly the patients of ``cases``."""
        found = {case.patient_id for case in cases}
        known = {*self.train, *self.val, *self.test}
        if found != known:
            gone, new = sorted(known - found), sorted(found - known)
            raise DataError(
                f"{source}: expected the patients that were split before, got others: "
                f"{len(gone)} of them {are(gone)} not in the data ({listing(gone, 5)}), "
                f"{len(new)} in the data {are(new)} not in the split ({listing(new, 5)}); "
                "restore the data folder, or start a new run in another output_dir."
            )

    def trained_elsewhere(self, other: "Split") -> list[str]:
        """Return the patients that are held out here (val, test) and in training in ``other``: a leak."""
        return sorted({*self.val, *self.test} & set(other.train))

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for JSON and for the checkpoint header."""
        return {part: list(patients) for part, patients in asdict(self).items()}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Sequence[str]]) -> "Split":
        """Return the split that :meth:`to_dict` described."""
        return cls(**{part: tuple(sorted(parts[part])) for part in PARTS})

    def save(self, path: Path, *, settings: Mapping[str, Any] | None = None) -> None:
        """Write JSON atomically, with the ``settings`` that the split was made by."""
        content = {"format": _FORMAT, "settings": dict(settings or {}), **self.to_dict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read what :meth:`save` wrote; DataError if it is not a split file."""
        parts = _read(path)
        try:
            return cls.from_dict(parts)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def divide(cases: Sequence[Case], settings: Mapping[str, Any]) -> Split:
    """Return the split of ``cases``: from ``settings["file"]``, else that of the dataset, else by the shares.

    Raises ConfigError for a missing file, and DataError for a file of other patients and for a dataset that assigns a
    patient to two parts or only some of its cases to a part. ``settings``: as for :func:`resolve_split`.
    """
    if settings.get("file"):
        file = Path(settings["file"])
        if not file.is_file():
            raise ConfigError(
                f"data.split.file: expected a split file, got {file}, which does not exist; correct the path."
            )
        split = Split.load(file)
        split.check(cases, source=f"data.split.file ({file})")
        return split
    if any(case.part is not None for case in cases):
        return _declared(cases)
    return split_patients(cases, **{k: settings[k] for k in (*PARTS, "seed")})


def _declared(cases: Sequence[Case]) -> Split:
    """Return the division that the dataset defines."""
    without = [case.case_id for case in cases if case.part is None]
    if without:
        raise DataError(
            f"expected a split for every case of the list, got none for {listing(without, 5)}; fill the column, or "
            "leave it out to divide the patients by data.split."
        )
    return Split.from_dict({part: list({c.patient_id for c in cases if c.part == part}) for part in PARTS})


def split_patients(cases: Sequence[Case], *, train: float, val: float, test: float, seed: int) -> Split:
    """Shuffle the patients of ``cases`` by ``seed`` and divide them by the three shares.

    Counts are rounded by largest remainder, and each part with a share above 0 gets at least one patient. The order of
    ``cases`` does not matter.

    Args:
        cases: of all patients.
        train: share of patients to train on.
        val: share to choose models on.
        test: share that nothing else sees.
        seed: of the shuffling.
    """
    patients = sorted({case.patient_id for case in cases})
    shares = {"train": train, "val": val, "test": test}
    wanted = sum(share > 0 for share in shares.values())
    if len(patients) < wanted:
        raise DataError(
            f"data.split: expected at least {plural(wanted, 'patient')} (one for each of "
            f"{', '.join(p for p in PARTS if shares[p] > 0)}), got {len(patients)}; "
            "add cases, or set the share of a part to 0."
        )
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    counts = _apportion(len(patients), shares)
    ends = np.cumsum([counts[part] for part in PARTS])
    return Split(
        *(tuple(sorted(shuffled[end - counts[p] : end])) for p, end in zip(PARTS, ends, strict=True))
    )


def resolve_split(
    cases: Sequence[Case],
    path: Path,
    *,
    settings: Mapping[str, Any],
    trained: bool = True,
    keep: bool = True,
) -> Split:
    """Return the split of a run, kept in the file ``path``.

    A file that exists is used, since a resumed run must continue with the same patients. It is refused if it divides
    other cases (DataError) or was made with other settings (ConfigError), unless nothing was trained with it: then it
    is what a start that failed has left, and the patients are divided anew.

    Args:
        cases: of all patients.
        path: of the file.
        settings: ``train``, ``val``, ``test``, ``seed`` and ``file`` (a split file to use instead of shuffling).
        trained: whether the folder of ``path`` holds a run, which the file then binds.
        keep: write a new division to ``path``.
    """
    if path.exists():
        try:
            return _kept_split(cases, path, settings)
        except (ConfigError, DataError):
            if trained:
                raise
    split = divide(cases, settings)
    if keep:
        split.save(path, settings=settings)
    return split


def _kept_split(cases: Sequence[Case], path: Path, settings: Mapping[str, Any]) -> Split:
    made_with = _read(path).get("settings", {})
    changed = [k for k, v in settings.items() if k in made_with and made_with[k] != v]
    if changed:
        raise ConfigError(
            f"data.split.{changed[0]}: expected {made_with[changed[0]]!r}, with which {path} was made, got "
            f"{settings[changed[0]]!r}; use another output_dir."
        )
    split = Split.load(path)
    split.check(cases, source=str(path))
    return split


def _apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    exact = {part: total * share for part, share in shares.items()}
    counts = {part: int(value + 1e-9) for part, value in exact.items()}
    by_remainder = sorted(shares, key=lambda part: counts[part] - exact[part])
    for part in by_remainder[: total - sum(counts.values())]:
        counts[part] += 1
    for part, share in shares.items():
        if share > 0 and counts[part] == 0:
            counts[max(counts, key=lambda p: counts[p])] -= 1
            counts[part] = 1
    return counts


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a split file; DataError if its form is not right."""
    content = read_json(path)
    if not isinstance(content, dict) or any(part not in content for part in PARTS):
        raise DataError(
            f"{path}: expected a split file with train, val and test, got {str(content)[:80]}; use the split.json of "
            "a run."
        )
    if content.get("format", _FORMAT) != _FORMAT:
        raise DataError(
            f"{path}: expected a split file of format {_FORMAT}, got format {str(content['format'])[:80]}; use the "
            "prod9 that wrote it."
        )
    lists = [content[part] for part in PARTS]
    if not all(isinstance(x, list) and all(isinstance(patient, str) for patient in x) for x in lists):
        raise DataError(
            f"{path}: expected lists of patient ids under train, val and test, got others; correct the file."
        )
    if not isinstance(content.get("settings", {}), dict):
        raise DataError(
            f"{path}: expected settings by name, got {str(content['settings'])[:80]}; correct the file."
        )
    return content
