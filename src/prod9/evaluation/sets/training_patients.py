"""Find out whether an evaluation compares with patients that the model was trained on.

A model may reproduce these patients, so scores against them are too good. They are known from the split of a run: that
of the autoencoder that is named, or those of runs near the generated volumes whose checkpoints generated them, by the
hashes in ``manifest.json``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.data.splits import Split
from prod9.errors import Prod9Error
from prod9.evaluation.sets.entries import Entry, read_manifest
from prod9.models.checkpoint_manager import CheckpointManager

SPLIT = "split.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_LEVELS_UP = 3
"""Levels above the generated volumes at which runs are looked for: in the folder itself and in its subfolders."""


@dataclass(frozen=True)
class TrainingPatients:
    """Patients of the real set that a model was trained or selected on.

    Attributes:
        total: patients of the real set.
        patients: those that were trained or selected on; None if that is not known.
        source: the split that holds them.
    """

    total: int
    patients: tuple[str, ...] | None = None
    source: str | None = None

    def warning(self) -> str | None:
        """Return a warning; None if it is known that no patient was trained on."""
        if self.patients is None:
            return (
                "It is not known on which patients the model was trained: no --split was given. Scores against "
                "training patients are too good; name the run's split.json with --split."
            )
        if not self.patients:
            return None
        return (
            f"{len(self.patients)} of the {self.total} real patients were trained or selected on, according to "
            f"{self.source}: these scores are too good. Compare with the test patients only, with --split."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "known": self.patients is not None,
            "count": None if self.patients is None else len(self.patients),
            "of": self.total,
            "source": self.source,
        }


def find_training_patients(
    real: Sequence[Entry], generated: Path, *, split: str | None = None, autoencoder: str | None = None
) -> TrainingPatients:
    """Return the patients of ``real`` that were trained or selected on, as far as that is known.

    Args:
        real: the real set.
        generated: folder of generated volumes, near which runs are looked for.
        split: a ``split.json`` of the model.
        autoencoder: a checkpoint whose split counts too.
    """
    patients = {entry.patient_id for entry in real}
    splits = list(_splits(generated, split, autoencoder))
    if not splits:
        return TrainingPatients(len(patients))
    used = {patient for _, known in splits for patient in (*known.train, *known.val)} & patients
    sources = [source for source, known in splits if not used or used & {*known.train, *known.val}]
    return TrainingPatients(len(patients), tuple(sorted(used)), ", ".join(dict.fromkeys(sources)))


def _splits(generated: Path, split: str | None, autoencoder: str | None) -> Iterator[tuple[str, Split]]:
    if split is not None:
        yield split, Split.load(Path(split))
    if autoencoder is not None:
        parts = CheckpointManager.open(autoencoder).header["split"]
        if any(parts.values()):  # weights of others do not record their patients
            yield autoencoder, Split.from_dict(parts)
    hashes = _checkpoint_hashes(generated)
    for run in _runs_near(generated) if hashes else ():
        made = {
            word
            for file in (run / "checkpoints").glob("*.sha256")
            for word in file.read_text(encoding="utf-8", errors="replace").split()[:1]
        }
        if made & hashes:
            try:
                yield str(run / SPLIT), Split.load(run / SPLIT)
            except Prod9Error:
                continue


def _checkpoint_hashes(generated: Path) -> set[str]:
    """Return the hashes of the checkpoints that generated the volumes; none without a manifest."""
    try:
        return set(_HASH.findall(json.dumps(read_manifest(generated).get("settings"))))
    except RecursionError:
        return set()


def _runs_near(generated: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    place = generated.resolve()
    for _ in range(_LEVELS_UP + 1):
        for run in (place, *sorted(path.parent for path in place.glob(f"*/{SPLIT}"))):
            if run not in seen and (run / SPLIT).is_file():
                seen.add(run)
                yield run
        place = place.parent
