"""The copy audit from files to its result: read each volume once, compare the sets, draw the nearest pairs."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prod9
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError
from prod9.evaluation.audit.embeddings import Embedding, VoxelEmbedding
from prod9.evaluation.audit.run import MIN_PATIENTS, Comparison, Described, compare, required_held_out
from prod9.evaluation.sets.entries import require_finite
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from prod9.json_files import write_json
from prod9.measures.montage import Cell, write_montage
from prod9.measures.slices import View
from prod9.system.progress import Progress
from prod9.system.wording import listing
from prod9.volumes import VolumeFile

FORMAT = 1
RESULT = "audit.json"
PICTURE = "nearest.png"
MAX_PICTURES = 8
_PICTURE_SIDE = 96


@dataclass(frozen=True)
class AuditSets:
    """The volumes of the three sets. Raises DataError where a patient is in ``train`` and in ``held_out``."""

    train: Sequence[Entry]
    held_out: Sequence[Entry]
    generated: Sequence[Entry]

    def __post_init__(self) -> None:
        both = sorted({e.patient_id for e in self.train} & {e.patient_id for e in self.held_out})
        if both:
            raise DataError(
                f"expected held-out patients that the model never saw, got {listing(both, 5)} among the training "
                "patients too; take them out of one of the two."
            )


@dataclass(frozen=True)
class Pair:
    """A generated volume and the training volume that it is nearest to.

    Attributes:
        generated: the generated volume.
        train: the training volume.
        mirrored: array axes (RAS) of the generated volume that are reversed in the training volume.
        distances: relative distance by embedding, the most suspicious first.
        p_value: of that first distance.
        suspect: whether any distance is below its threshold.
    """

    generated: Entry
    train: Entry
    mirrored: tuple[int, ...]
    distances: dict[str, float]
    p_value: float
    suspect: bool


@dataclass(frozen=True)
class Audit:
    """The result.

    Attributes:
        sets: volumes that were compared.
        comparisons: results of each embedding.
        mirrors: mirrorings that each embedding tried.
        false_alarms: share that the thresholds were set for.
        max_share: limit on the share of suspects.
        skipped: files that could not be read.
        left_out: volumes without a fault that did not count.
        gaps: a sentence for each thing that should have been compared and was not. An audit with gaps has not passed:
            what was left out may be a copy, or what was copied.
    """

    sets: AuditSets
    comparisons: Sequence[Comparison]
    mirrors: dict[str, tuple[tuple[int, ...], ...]]
    false_alarms: float
    max_share: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each generated volume with the training volume that it is nearest to: suspects first, then by distance."""
        found = [self._pair(k) for k in range(len(self.sets.generated))]
        return sorted(found, key=lambda pair: (not pair.suspect, min(pair.distances.values())))

    @property
    def suspects(self) -> list[Pair]:
        """Pairs that are suspect by any embedding."""
        return [pair for pair in self.pairs if pair.suspect]

    @property
    def share(self) -> float:
        """Share of the generated volumes that are suspect."""
        return len(self.suspects) / len(self.sets.generated)

    @property
    def passed(self) -> bool:
        """Whether the share is within the limit and nothing was left out."""
        return self.share <= self.max_share and not self.gaps

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format": FORMAT,
            "command": "audit",
            "prod9": prod9.__version__,
            "passed": self.passed,
            "share_suspect": self.share,
            "max_share": self.max_share,
            "false_alarms": self.false_alarms,
            "sets": {name: _summary(entries) for name, entries in vars(self.sets).items()},
            "embeddings": [_embedding(c) for c in self.comparisons],
            "pairs": [_plain(pair) for pair in self.pairs],
            "skipped": self.skipped,
            "left_out": self.left_out,
            "gaps": self.gaps,
        }

    def write(self, folder: Path, voxels: VoxelEmbedding) -> None:
        """Write ``audit.json`` and then ``nearest.png`` into ``folder``."""
        self.write_verdict(folder)
        self.write_pictures(folder / PICTURE, voxels)

    def write_verdict(self, folder: Path) -> None:
        """Write ``audit.json`` and remove the pictures of an earlier audit."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PICTURE).unlink(missing_ok=True)
        write_json(folder / RESULT, self.to_dict())

    def write_pictures(self, path: Path, voxels: VoxelEmbedding) -> None:
        """Draw the first pairs and the difference of each as one PNG."""
        rows = []
        for pair in self.pairs[:MAX_PICTURES]:
            word = "suspect, " if pair.suspect else ""
            made = voxels.cube(pair.generated.read(), _PICTURE_SIDE)
            real = voxels.cube(pair.train.read(), _PICTURE_SIDE)
            made = made.flip(pair.mirrored) if pair.mirrored else made
            turned = ", mirrored" if pair.mirrored else ""
            rows.append([
                Cell(f"{pair.generated.path.name}{turned}", made.clamp(0, 1).numpy()),
                Cell(f"nearest in training: {pair.train.case_id} {pair.train.modality}", real.clamp(0, 1).numpy()),
                Cell(f"difference ({word}relative distance {min(pair.distances.values()):.2f})",
                 (made - real).abs().clamp(0, 1).numpy()),
            ])  # fmt: skip
        side = voxels.field_mm / _PICTURE_SIDE
        write_montage(path, rows, view=View(spacing=(side, side, side)))

    def _pair(self, k: int) -> Pair:
        accusers = sorted(self.comparisons, key=lambda c: (not c.suspect[k], c.generated[k].item()))
        first = accusers[0]
        return Pair(
            generated=self.sets.generated[k],
            train=self.sets.train[int(first.nearest.index[k])],
            mirrored=self.mirrors[first.name][int(first.nearest.mirror[k])],
            distances={c.name: c.generated[k].item() for c in accusers},
            p_value=first.p_values[k].item(),
            suspect=bool(first.suspect[k]),
        )


def run_audit(
    sets: AuditSets,
    embeddings: Sequence[Embedding],
    *,
    false_alarms: float,
    max_share: float,
    bad: BadFiles,
    progress: Progress | None = None,
) -> Audit:
    """Read every volume once, describe it by each of ``embeddings``, and compare the sets.

    A volume is suspect if it is so by any embedding; each embedding gets an equal part of ``false_alarms``. Raises
    DataError for too few held-out volumes, with the number that is needed, for files that cannot be read, and for a
    held-out volume that is a training volume under another name.

    Args:
        sets: volumes to compare.
        embeddings: how they are described.
        false_alarms: share of honest volumes that may be suspect.
        max_share: limit on the share of suspects.
        bad: notes files that cannot be used.
        progress: called after each volume.
    """
    _require_held_out(sets.held_out, false_alarms, len(embeddings))
    reader = _Reader(embeddings, bad, progress, len(sets.train) + len(sets.held_out) + len(sets.generated))
    train = reader.describe(sets.train, mirrored=False)
    held_out = reader.describe(sets.held_out, mirrored=True)
    generated = reader.describe(sets.generated, mirrored=True)
    for name, part in (("training", train), ("generated", generated)):
        if not part.entries:
            raise DataError(f"expected at least one readable {name} volume, got none.")
    _require_held_out(held_out.entries, false_alarms, len(embeddings))
    known = dict(zip(train.contents, train.entries, strict=True))
    for entry, content in zip(held_out.entries, held_out.contents, strict=True):
        if content in known:
            raise DataError(_copied(entry, known[content]))
    comparisons = [
        compare(
            embedding.name,
            train=train.described(i),
            held_out=held_out.described(i),
            generated=generated.described(i),
            false_alarms=false_alarms / len(embeddings),
        )
        for i, embedding in enumerate(embeddings)
    ]
    for comparison in comparisons:
        for one, other in comparison.copies_held_out:
            raise DataError(_copied(held_out.entries[one], train.entries[other]))
    return Audit(
        sets=AuditSets(train.entries, held_out.entries, generated.entries),
        comparisons=comparisons,
        mirrors={embedding.name: embedding.mirrors for embedding in embeddings},
        false_alarms=false_alarms,
        max_share=max_share,
        skipped=[asdict(item) for item in bad.skipped],
        left_out=[asdict(item) for item in bad.left_out],
        gaps=bad.gaps,
    )


@dataclass
class _Part:
    """A set that was read.

    Attributes:
        entries: volumes that could be read.
        rows: for each embedding, one tensor ``[V D]`` per volume.
        contents: hashes of the voxels.
    """

    entries: list[Entry]
    rows: list[list[torch.Tensor]]
    contents: list[bytes]

    def described(self, embedding: int) -> Described:
        return Described(torch.stack(self.rows[embedding]), [entry.patient_id for entry in self.entries])


class _Reader:
    """Reads entries one at a time and keeps only their embeddings."""

    def __init__(
        self, embeddings: Sequence[Embedding], bad: BadFiles, progress: Progress | None, total: int
    ) -> None:
        self.embeddings, self.bad, self.progress, self.total = embeddings, bad, progress, total
        self.done = 0

    def describe(self, entries: Sequence[Entry], *, mirrored: bool) -> _Part:
        part = _Part([], [[] for _ in self.embeddings], [])
        for entry in entries:
            try:
                file = entry.read()
                rows = [embedding(file, mirrored=mirrored) for embedding in self.embeddings]
                # NaN is below no threshold: such a volume would pass.
                require_finite(entry.path, rows)
            except DataError as error:
                self.bad.report(entry, error)
            else:
                part.entries.append(entry)
                part.contents.append(hashlib.sha256(np.ascontiguousarray(file.data).data).digest())
                for kept, row in zip(part.rows, rows, strict=True):
                    kept.append(row)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return part


def readable(entries: Sequence[Entry], bad: BadFiles) -> Iterator[VolumeFile]:
    """Yield the volumes of ``entries`` that can be read; the audit reads all of them again and lists the others."""
    for entry in entries:
        try:
            yield entry.read()
        except DataError as error:
            if not bad.skip:
                bad.report(entry, error)


def _require_held_out(entries: Sequence[Entry], false_alarms: float, embeddings: int) -> None:
    needed, patients = required_held_out(false_alarms, embeddings), {entry.patient_id for entry in entries}
    if len(entries) < needed or len(patients) < MIN_PATIENTS:
        raise DataError(
            f"expected at least {needed} held-out volumes of {MIN_PATIENTS} or more patients to set a threshold for "
            f"{false_alarms:g} false alarms in {embeddings} embeddings, got {len(entries)} of {len(patients)}; hold "
            "out more patients, or allow more with --false-alarms."
        )


def _copied(held_out: Entry, train: Entry) -> str:
    return (
        f"{held_out.path}: expected a held-out volume that the model never saw, got a copy of the training volume "
        f"{train.path}; the patients overlap: take it out of one of the two sets."
    )


def _summary(entries: Sequence[Entry]) -> dict[str, Any]:
    found = {entry.modality for entry in entries}
    kinds = [kind for kind in MODALITIES if kind in found] + sorted(found - set(MODALITIES))
    return {"volumes": len(entries), "patients": len({e.patient_id for e in entries}), "modalities": kinds}


def _embedding(c: Comparison) -> dict[str, Any]:
    return {
        "name": c.name,
        "threshold": c.threshold,
        "share_suspect": c.suspect.float().mean().item(),
        "authenticity": c.authentic.float().mean().item(),
        "median_held_out": c.held_out.median().item(),
        "median_generated": c.generated.median().item(),
        "held_out": [round(value, 5) for value in c.held_out.tolist()],
        "generated": [round(value, 5) for value in c.generated.tolist()],
    }


def _plain(pair: Pair) -> dict[str, Any]:
    train = {"case": pair.train.case_id, "modality": pair.train.modality, "file": str(pair.train.path)}
    return {
        "generated": str(pair.generated.path),
        "train": train,
        "mirrored_axes": list(pair.mirrored),
        "relative_distance": pair.distances,
        "p_value": pair.p_value,
        "suspect": pair.suspect,
    }
