"""Which volumes a folder holds for an evaluation, and how they come to one grid: headers first, voxels later.

A folder is a dataset of a known layout, or simply volumes: named as `prod9 generate` names them
(``T1_0000.nii.gz``, ``CASE_T1_0000.nii.gz``) or in any other way, the name then being the case.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9 import volumes
from prod9.data.layouts import scan_dataset
from prod9.data.names import TOKENS, bare, is_volume, shows_labels
from prod9.data.scan import walk
from prod9.data.splits import Split
from prod9.data.transforms import IntensityScaling
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement
from prod9.volumes import Channel, VolumeFile, VolumeHeader

PERCENTILES = IntensityScaling(mode="percentile", lower=0.0, upper=99.5)
"""How raw intensities become [0, 1]: as in the shipped configs."""
UNNAMED = "volume"
"""The modality of a file whose name says none."""

_MANIFEST = "manifest.json"
_NUMBERED = re.compile(
    rf"(?:(?P<case>.+)[-_])?(?P<token>{'|'.join(sorted(TOKENS, key=len, reverse=True))})[-_]?(?P<index>\d+)",
    re.IGNORECASE,
)
_SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class Entry:
    """One volume. channel: its place in a 4D file. seg: the segmentation of its case, of ``label_scheme``."""

    case_id: str
    patient_id: str
    modality: str
    path: Path
    channel: Channel | None = None
    seg: Path | None = None
    label_scheme: str = "canonical"

    @property
    def key(self) -> tuple[str, str]:
        """Return what its counterpart in another folder has too."""
        return self.case_id, self.modality


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    file: str
    reason: str


class BadFiles:
    """What happens to files that cannot be read: refused, or with ``skip`` listed and left out."""

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self.skipped: list[Skipped] = []

    def report(self, entry: Entry, error: DataError) -> None:
        """Note ``entry`` as skipped, or raise ``error`` with what to do about it."""
        if not self.skip:
            raise DataError(f"{error} To leave such files out and list them, pass --skip-bad.") from error
        self.skipped.append(Skipped(str(entry.path), str(error)))


def find_volumes(
    root: str | Path,
    *,
    layout: str = "auto",
    label_scheme: str = "auto",
    modalities: Sequence[str] = (),
    split: Path | None = None,
) -> list[Entry]:
    """Return the volumes below ``root``, sorted by modality and case.

    modalities: only these, all by default. split: a run's ``split.json``; only its test patients are kept.
    Raises DataError for a folder without volumes, without the modalities, or without a test patient.
    """
    root = Path(root)
    dataset = scan_dataset(root, layout=layout, label_scheme=label_scheme)
    entries = [
        Entry(
            case.case_id,
            case.patient_id,
            modality,
            path,
            channel=case.channels.get(modality),
            seg=case.seg,
            label_scheme=case.label_scheme,
        )
        for case in dataset.cases
        for modality, path in case.images.items()
    ] or _flat(root)
    if not entries:
        raise DataError(f"{root}: expected volumes (.nii or .nii.gz), got none; check the path.")
    chosen = [entry for entry in entries if not modalities or entry.modality in modalities]
    if not chosen:
        there = ", ".join(sorted({entry.modality for entry in entries}))
        raise DataError(
            f"{root}: expected volumes of {', '.join(modalities)}, got {there}; correct --modality."
        )
    if split is not None:
        chosen = _held_out(chosen, split, root)
    return sorted(chosen, key=lambda entry: (entry.modality, entry.case_id))


def match_pairs(real: Sequence[Entry], generated: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return (real, generated) of each case and modality that both folders have.

    Raises DataError naming some of each when there is none, or when a name stands for several volumes.
    """
    by_key = _unique(real), _unique(generated)
    common = [key for key in by_key[0] if key in by_key[1]]
    if not common:
        examples = [", ".join(f"{case} {kind}" for case, kind in list(keys)[:3]) for keys in by_key]
        raise DataError(
            f"expected generated volumes of the same cases as the real ones, got none in common: real has "
            f"{examples[0]} …, generated has {examples[1]} …; name the files alike, or leave --paired out."
        )
    return [(by_key[0][key], by_key[1][key]) for key in common]


def _unique(entries: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry.key in found:
            raise DataError(
                f"{entry.path}: expected one {entry.modality} volume of {entry.case_id} to pair, got "
                f"{found[entry.key].path} too; remove one."
            )
        found[entry.key] = entry
    return found


def _flat(root: Path) -> list[Entry]:
    labels = _labels(root)
    entries = []
    for path in walk(root) if root.is_dir() else []:
        if not is_volume(path.name) or shows_labels(path.name):
            continue
        stem = bare(path.name)
        match = _NUMBERED.fullmatch(stem)
        modality = labels.get(path.name) or (TOKENS[match["token"].lower()] if match else UNNAMED)
        # Volume k of a modality stands alone; of a case, it is one of the case's.
        case = stem if not match or not match["case"] else f"{match['case']}_{match['index']}"
        entries.append(Entry(case, case, modality, path))
    return entries


def _labels(root: Path) -> dict[str, str]:
    """Return the label of each file that `prod9 generate` noted; nothing where there is no such note."""
    try:
        files: Mapping[str, Mapping[str, object]] = json.loads((root / _MANIFEST).read_text("utf-8"))["files"]
        return {name: str(entry["label"]) for name, entry in files.items() if "label" in entry}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _held_out(entries: Sequence[Entry], file: Path, root: Path) -> list[Entry]:
    if not file.is_file():
        raise DataError(f"{file}: expected a split file, got none; a run keeps it as split.json.")
    test = frozenset(Split.load(file).test)
    if not test:
        raise DataError(
            f"{file}: expected test patients to compare with, got none: validation patients were spent on choosing "
            "the model. Train with data.split.test above 0, or compare with patients of another folder."
        )
    kept = [entry for entry in entries if entry.patient_id in test]
    if not kept:
        raise DataError(f"{root}: expected the test patients of {file}, got none of them; check both paths.")
    return kept


# -- to one grid ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """Brings volumes to ``grid``, in RAS, with intensities in [0, 1].

    spacing: mm that all are resampled to, None to leave them. A volume that has the sides of the grid stays
    where it is; any other is cut to its head, which is put in the middle. Floating-point volumes within [0, 1]
    are in the model's range already; others are scaled as ``PERCENTILES``.
    """

    grid: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None

    def read(self, entry: Entry) -> Tensor:
        """Return float32 ``[1 1 H W D]``; DataError for what cannot be read or shows no head."""
        return self.place(volumes.read(entry.path, channel=entry.channel))

    def place(self, file: VolumeFile) -> Tensor:
        """Return the volume of a file on the grid."""
        data, _ = volumes.to_ras(file.data, file.header.affine)
        scaling = _scaling(file)
        if data.shape == self.grid and not self._moves(file.header):
            return _to_unit(data, scaling, file)[None, None]
        placement = GridPlacement(spacing=self.spacing, grid=self.grid, intensity=scaling)
        return torch.from_numpy(placement.place({"volume": file}).images["volume"])[None, None]

    def _moves(self, header: VolumeHeader) -> bool:
        return self.spacing is not None and not _close(_ras_spacing(header), self.spacing)


def prepare_for(
    real: Sequence[Entry],
    generated: Sequence[Entry],
    bad: BadFiles,
    *,
    grid: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> tuple[Preparation, list[Entry], list[Entry]]:
    """Return how both sets come to one grid, and the entries of each whose headers can be read.

    grid: that of the generated volumes by default. Raises DataError when those differ among themselves, or
    when voxel sizes differ and no ``spacing`` says what to resample to.
    """
    headers = [_headers(entries, bad) for entries in (real, generated)]
    for name, found in zip(("real", "generated"), headers, strict=True):
        if not found:
            raise DataError(f"expected at least one readable {name} volume, got none.")
    if spacing is None:
        _require_one_spacing({**headers[0], **headers[1]})
    preparation = Preparation(grid or _common_grid(headers[1]), spacing)
    return preparation, list(headers[0]), list(headers[1])


def _headers(entries: Sequence[Entry], bad: BadFiles) -> dict[Entry, VolumeHeader]:
    found = {}
    for entry in entries:
        try:
            found[entry] = volumes.read_header(entry.path, channel=entry.channel)
        except DataError as error:
            bad.report(entry, error)
    return found


def _common_grid(headers: Mapping[Entry, VolumeHeader]) -> tuple[int, int, int]:
    grids = {_ras_shape(header): header.path for header in headers.values()}
    if len(grids) > 1:
        (one, path), (other, second) = list(grids.items())[:2]
        raise DataError(
            f"expected generated volumes of one grid, got {one} in {path} and {other} in {second}; say which to "
            "compare on with --grid H W D."
        )
    return next(iter(grids))


def _require_one_spacing(headers: Mapping[Entry, VolumeHeader]) -> None:
    first = next(iter(headers.values()))
    for header in headers.values():
        if not _close(_ras_spacing(header), _ras_spacing(first)):
            sizes = [" × ".join(f"{mm:g}" for mm in h.spacing) for h in (header, first)]
            raise DataError(
                f"{header.path}: expected voxels of {sizes[1]} mm as in {first.path}, got {sizes[0]} mm; say what to "
                "resample both to with --spacing X Y Z."
            )


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return bool(np.allclose(one, other, rtol=_SPACING_TOLERANCE, atol=0.0))


def _ras_spacing(header: VolumeHeader) -> tuple[float, ...]:
    return tuple(np.asarray(header.spacing)[_axis_order(header)])


def _ras_shape(header: VolumeHeader) -> tuple[int, int, int]:
    h, w, d = np.asarray(header.shape)[_axis_order(header)].tolist()
    return h, w, d


def _axis_order(header: VolumeHeader) -> list[int]:
    """Return which of the file's axes runs right, which forward and which up."""
    return [next(i for i, to in enumerate(header.orientation) if to in ends) for ends in ("LR", "PA", "SI")]


def _scaling(file: VolumeFile) -> IntensityScaling:
    unit = file.header.dtype.kind == "f" and file.data.min() >= 0.0 and file.data.max() <= 1.0
    return IntensityScaling(mode="range", lower=0.0, upper=1.0) if unit else PERCENTILES


def _to_unit(data: np.ndarray, scaling: IntensityScaling, file: VolumeFile) -> Tensor:
    return torch.from_numpy(scaling.scale(data, file.header.path).to_unit(data))


def shuffled(entries: Sequence[Entry], *, seed: int) -> list[Entry]:
    """Return ``entries`` in an order that follows from ``seed``, one modality after the other."""
    order = np.random.default_rng(seed).permutation(len(entries))
    return sorted((entries[i] for i in order), key=lambda entry: entry.modality)
