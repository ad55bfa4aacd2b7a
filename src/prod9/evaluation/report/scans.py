"""The volumes of a report: a few real and generated ones, small enough to be part of a page."""

import base64
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prod9.data.labels import canonical_seg
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError
from prod9.evaluation.report.gather import RunRecord
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, find_volumes
from prod9.measures.montage import three_planes
from prod9.volumes import encode, read, to_ras

MAX_SIDE = 128
"""Longest side of an embedded volume; larger ones are averaged over blocks."""
PER_MODALITY = 2
_CASES_LOOKED_AT = 6
_COLUMNS = 4
_HEAD = 40
"""Intensity of 255 above which a voxel counts as head when a picture is centred."""
_BACKGROUND = "#0b0f14"


@dataclass(frozen=True)
class Shown:
    """A volume in the page: ``image`` is uint8 ``[H W D]`` in RAS, ``seg`` holds canonical labels, if any."""

    name: str
    modality: str
    group: str
    image: np.ndarray
    affine: np.ndarray
    seg: np.ndarray | None = None

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


def draw_montage(real: Sequence[Shown], generated: Sequence[Shown]) -> bytes:
    """Return a PNG with one row per modality: the real volume, then generated ones, each in three planes."""
    kinds = list(dict.fromkeys(shown.modality for shown in [*generated, *real]))
    rows = [[s for s in [*real, *generated] if s.modality == kind][:_COLUMNS] for kind in kinds]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(columns * 4.4, len(rows) * 1.75), dpi=110, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows, strict=True):
        for axis, shown in zip(line, row, strict=False):
            made = shown.group == "generated"
            planes = three_planes(_centred(shown.image, generated[0].image.shape))
            axis.imshow(planes, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
            title = f"{shown.modality} · {'generated' if made else 'real, held out'}"
            axis.set_title(title, fontsize=9, color="#e8eef2" if made else "#7fd6dd", pad=3)
    figure.tight_layout(pad=0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=_BACKGROUND)
    return buffer.getvalue()


def _centred(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``image`` cut or padded to ``shape`` with its head in the middle, so that all planes have one scale."""
    head = np.argwhere(image > _HEAD)
    centre = (head.min(0) + head.max(0) + 1) // 2 if len(head) else np.asarray(image.shape) // 2
    start = centre - np.asarray(shape) // 2
    padded = np.pad(image, [(side, side) for side in shape])
    window = tuple(slice(s + side, s + 2 * side) for s, side in zip(start.tolist(), shape, strict=True))
    return padded[window]


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
