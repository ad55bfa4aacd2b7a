"""The volumes of a report: a few real and generated ones, small enough to be part of a page."""

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.labels import canonical_seg
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError
from prod9.evaluation.report.gather import RunRecord
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, find_volumes
from prod9.measures.montage import Cell, montage
from prod9.measures.slices import View, widest_slices
from prod9.volumes import encode, read, to_ras

MAX_SIDE = 128
"""Longest side of an embedded volume; larger ones are averaged over blocks."""
PER_MODALITY = 2
_CASES_LOOKED_AT = 6
_COLUMNS = 4
_HEAD = 40
"""Intensity of 255 above which a voxel counts as head when a picture is centred."""
_MARGIN_MM = 8.0


@dataclass(frozen=True)
class Shown:
    """A volume in the page: ``image`` is uint8 ``[H W D]`` in RAS, ``seg`` holds canonical labels, if any."""

    name: str
    modality: str
    group: str
    image: np.ndarray
    affine: np.ndarray
    seg: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """Return the volume for the viewer of the page: gzipped NIfTI as base64."""
        packed: dict[str, Any] = {"name": self.name, "modality": self.modality, "group": self.group}
        packed["image"] = _pack(self.image, self.affine)
        if self.seg is not None:
            packed["seg"] = _pack(self.seg, self.affine)
            packed["centre"] = _lesion_centre(self.seg, self.affine)
        return packed


def load_generated(folder: Path, *, per_modality: int = PER_MODALITY) -> list[Shown]:
    """Return the first volumes of each modality in ``folder``; DataError without any."""
    return _first(find_volumes(folder, bad=BadFiles(skip=True)), "generated", per_modality)


def load_real(run: RunRecord) -> list[Shown]:
    """Return every modality of one held-out patient of ``run``: among the first few, that with the largest lesion.

    Raises DataError where the data are no longer where the run read them, or no patient was held out.
    """
    data = run.data
    entries = find_volumes(
        data.get("root", ""),
        layout=data.get("layout", "auto"),
        modalities=data.get("modalities", ()),
        split=run.folder / "split.json",
        bad=BadFiles(skip=True),  # only a few are shown
    )
    cases = list(dict.fromkeys(entry.case_id for entry in entries))[:_CASES_LOOKED_AT]
    best = max(cases, key=lambda case: _lesion(next(e for e in entries if e.case_id == case)))
    return _first([entry for entry in entries if entry.case_id == best], "held-out", 1)


def draw_montage(real: Sequence[Shown], generated: Sequence[Shown], *, radiological: bool = False) -> bytes:
    """Return a PNG with one row per modality: the real volume, then generated ones, each in three planes.

    Real volumes are cut where their lesion is widest. The volumes are those of :func:`in_one_frame`.
    """
    kinds = list(dict.fromkeys(shown.modality for shown in [*generated, *real]))
    rows = [
        [_cell(shown) for shown in [*real, *generated] if shown.modality == kind][:_COLUMNS] for kind in kinds
    ]
    return montage(rows, view=View(spacing=generated[0].spacing, radiological=radiological))


def _cell(shown: Shown) -> Cell:
    words = "generated" if shown.group == "generated" else "real, held out"
    at = None if shown.seg is None else widest_slices(shown.seg, shown.image.shape)
    return Cell(f"{shown.modality}, {words}", shown.image / np.float32(255), at, shown.spacing)


def in_one_frame(scans: Sequence[Shown]) -> list[Shown]:
    """Return the volumes in boxes of equal size in mm with the middle of each head at 0 mm.

    Then viewers that move together show the same place of different heads, at one scale.
    """
    middles, reach = [], np.zeros(3)
    for shown in scans:
        head = np.argwhere(shown.image > _HEAD)
        low, high = (
            (head.min(0), head.max(0) + 1) if len(head) else (np.zeros(3), np.asarray(shown.image.shape))
        )
        middles.append((low + high) / 2)
        reach = np.maximum(reach, (high - low) / 2 * np.asarray(shown.spacing) + _MARGIN_MM)
    return [_framed(shown, middle, reach) for shown, middle in zip(scans, middles, strict=True)]


def _framed(shown: Shown, middle: np.ndarray, reach: np.ndarray) -> Shown:
    """Return ``shown`` cut or padded to ``reach`` mm on each side of ``middle`` (in voxels), which becomes 0 mm."""
    spacing = np.asarray(shown.spacing)
    half = np.ceil(reach / spacing).astype(int)
    start = np.floor(middle).astype(int) - half
    window = tuple(slice(s + 2 * h, s + 4 * h) for s, h in zip(start.tolist(), half.tolist(), strict=True))
    room = [(2 * h, 2 * h) for h in half.tolist()]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (start + 0.5 - middle) * spacing
    seg = None if shown.seg is None else np.pad(shown.seg, room)[window]
    return replace(shown, image=np.pad(shown.image, room)[window], seg=seg, affine=affine)


def _first(entries: Sequence[Entry], group: str, count: int) -> list[Shown]:
    order = {kind: k for k, kind in enumerate(MODALITIES)}
    shown: list[Shown] = []
    for kind in sorted({e.modality for e in entries}, key=lambda k: (order.get(k, len(order)), k)):
        shown += [_load(entry, group) for entry in [e for e in entries if e.modality == kind][:count]]
    return shown


def _load(entry: Entry, group: str) -> Shown:
    file = entry.read()
    data, affine = to_ras(file.data, file.header.affine)
    factor = -(-max(data.shape) // MAX_SIDE)
    low, high = np.percentile(data, (0.5, 99.8))
    unit = np.clip((_averaged(data, factor) - low) / max(float(high - low), 1e-9), 0.0, 1.0)
    return Shown(
        name=entry.path.name.split(".nii")[0],
        modality=entry.modality,
        group=group,
        image=np.rint(255 * unit).astype(np.uint8),
        affine=_coarser(affine, factor),
        seg=_seg(entry, data.shape, factor),
    )


def _seg(entry: Entry, shape: tuple[int, ...], factor: int) -> np.ndarray | None:
    if entry.seg is None:
        return None
    file = read(entry.seg)
    labels, _ = to_ras(canonical_seg(file.data, entry.label_scheme, entry.seg), file.header.affine)
    if labels.shape != shape:
        return None
    start = factor // 2
    return np.ascontiguousarray(labels[start::factor, start::factor, start::factor]).astype(np.uint8)


def _lesion(entry: Entry) -> int:
    try:
        return 0 if entry.seg is None else int((read(entry.seg).data > 0).sum())
    except DataError:
        return 0


def _lesion_centre(seg: np.ndarray, affine: np.ndarray) -> list[float] | None:
    """Return the centre of the lesions in mm; None without any."""
    places = np.argwhere(seg > 0)
    if not len(places):
        return None
    return [round(float(mm), 2) for mm in affine[:3, :3] @ np.median(places, axis=0) + affine[:3, 3]]


def _averaged(data: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return data
    room = [(0, -side % factor) for side in data.shape]
    padded = np.pad(data, room, mode="edge")
    h, w, d = (side // factor for side in padded.shape)
    return padded.reshape(h, factor, w, factor, d, factor).mean(axis=(1, 3, 5))


def _coarser(affine: np.ndarray, factor: int) -> np.ndarray:
    """Return the affine of cubes of voxels with side ``factor``, with its origin in the middle of the first block."""
    coarse = np.array(affine, dtype=np.float64)
    coarse[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    coarse[:3, :3] *= factor
    return coarse


def _pack(data: np.ndarray, affine: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(encode(data, affine), 9, mtime=0)).decode("ascii")
