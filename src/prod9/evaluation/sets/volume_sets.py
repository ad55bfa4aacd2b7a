"""Find the volumes of a folder for an evaluation, and bring them to one grid.

A folder is a dataset of a known layout, or simply holds volumes: named as `prod9 generate` names them
(``T1_0000.nii.gz``, ``CASE_T1_0000.nii.gz``) or in any other way, where the name is then the case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prod9 import volumes
from prod9.data.layouts.find import Dataset, scan_dataset
from prod9.data.layouts.scan import Walk
from prod9.data.splits import Split
from prod9.data.transforms import IntensityScaling
from prod9.errors import DataError
from prod9.evaluation.sets.entries import BadFiles as BadFiles
from prod9.evaluation.sets.entries import Entry as Entry
from prod9.evaluation.sets.entries import entry_by_name, read_manifest
from prod9.modalities import known_as
from prod9.pipelines.placement import GridPlacement
from prod9.volumes import VolumeFile, VolumeHeader

F = TypeVar("F")

PERCENTILES = IntensityScaling(mode="percentile", lower=0.0, upper=99.5)
"""How raw intensities are brought to [0, 1], as in the shipped configs."""

_DESCRIBED = ("msd", "nnunet", "bids", "datalist")
"""Layouts that list their images; in all others names decide."""
_SPACING_TOLERANCE = 0.01
Spacing = tuple[float, float, float]


def find_volumes(
    root: str | Path,
    *,
    layout: str = "auto",
    label_scheme: str = "auto",
    modalities: Sequence[str] = (),
    split: Path | None = None,
    without: Path | None = None,
    bad: BadFiles | None = None,
) -> list[Entry]:
    """Return all volumes below ``root``, sorted by modality and case, whatever mixture of names they have.

    Raises DataError for a folder without volumes, without the modalities, or without a test patient.

    Args:
        root: the folder.
        layout: name of its layout, or ``auto``.
        label_scheme: meaning of the labels in segmentations, or ``auto``.
        modalities: only these; all by default.
        split: a run's ``split.json``; only its test patients are kept.
        without: a folder, perhaps inside of ``root``, whose volumes are left out.
        bad: notes what is left out; by default files that cannot be used are refused.
    """
    root, bad = Path(root), BadFiles(skip=False) if bad is None else bad
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
    ]
    entries += _beside_cases(root, dataset, bad)
    if without is not None:
        entries = outside(entries, lambda entry: [entry.path], root=root, without=without, bad=bad)
    if not entries:
        raise DataError(f"{root}: expected volumes (.nii or .nii.gz), got none; check the path.")
    there = sorted({entry.modality for entry in entries})
    modalities = [known_as(name, there) for name in modalities]
    chosen = [entry for entry in entries if not modalities or entry.modality in modalities]
    if not chosen:
        raise DataError(
            f"{root}: expected volumes of {', '.join(modalities)}, got {', '.join(there)}; correct --modality."
        )
    _note_others(entries, chosen, f"of other modalities than {', '.join(modalities)}", bad)
    if split is not None:
        held_out = _held_out(chosen, split, root, bad)
        _note_others(chosen, held_out, f"not of the test patients of {split}", bad)
        chosen = held_out
    return sorted(chosen, key=lambda entry: (entry.modality, entry.case_id, str(entry.path)))


def outside(
    found: Sequence[F], files: Callable[[F], Sequence[Path]], *, root: Path, without: Path, bad: BadFiles
) -> list[F]:
    """Return those of ``found`` that have no file below ``without``, a folder that may be inside of ``root``.

    Args:
        found: what was found in ``root``.
        files: the files of one of them.
        root: folder that was searched; where it is ``without`` itself, all stay.
        without: folder of what the others are compared with.
        bad: notes what is left out.
    """
    if not _lies_inside(without, root):
        return list(found)
    kept: list[F] = []
    left_out: list[F] = []
    for one in found:
        (left_out if any(_lies_inside(file, without) for file in files(one)) else kept).append(one)
    bad.leave_out(f"in {without}, with which the others are compared", [files(one)[0] for one in left_out])
    return kept


def _lies_inside(path: Path, folder: Path) -> bool:
    """Return whether ``path`` is below ``folder``, links followed; no folder is inside of itself."""
    place, around = path.resolve(), folder.resolve()
    return place != around and place.is_relative_to(around)


def require_other(real: Path, made: Path) -> None:
    """Raise DataError where the folders of real and of generated volumes are the same: all scores would be perfect."""
    if real.resolve() == made.resolve():
        raise DataError(
            f"{real}: expected two folders, real and generated, got the same twice; correct one of them."
        )


def match_pairs(
    real: Sequence[Entry], generated: Sequence[Entry], bad: BadFiles | None = None
) -> list[tuple[Entry, Entry]]:
    """Return (real, generated) of each case and modality that both folders have; ``bad`` notes the others.

    Raises DataError with examples when there is none, or when several volumes have one name.
    """
    by_key = _unique(real), _unique(generated)
    common = [key for key in by_key[0] if key in by_key[1]]
    if not common:
        examples = [", ".join(f"{case} {kind}" for case, kind in list(keys)[:3]) for keys in by_key]
        raise DataError(
            f"expected generated volumes of the same cases as the real ones, got none in common: real has "
            f"{examples[0]} …, generated has {examples[1]} …; name the files alike, or leave --paired out."
        )
    if bad is not None:
        alone = [entry.path for key, entry in by_key[1].items() if key not in by_key[0]]
        bad.leave_out("generated, without a real volume of the same case to be paired with", alone)
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


def _beside_cases(root: Path, dataset: Dataset, bad: BadFiles) -> list[Entry]:
    """Return the volumes that belong to no case of the layout; ``bad`` notes what is none."""
    used = {path for case in dataset.cases for path in case.files}
    described, met = dataset.layout in _DESCRIBED, Walk()
    there = [path for path in met.volumes(root) if path not in used] if root.is_dir() else []
    others = list(dataset.ignored) if described else there
    noted = read_manifest(root).get("files")
    manifest = {str(k): v for k, v in noted.items() if isinstance(v, dict)} if isinstance(noted, dict) else {}
    entries, strange = list[Entry](), list[Path]()
    for path in others:
        entry = entry_by_name(path, root, manifest) if path.is_relative_to(root) else None
        if entry is not None and not described:
            entries.append(entry)
        elif entry is not None:
            strange.append(path)
    counted = [str(entry.path) for entry in entries]
    for problem in [*dataset.problems, *met.problems, *met.absent]:
        # Two files of one name are a problem for training; here both of them count.
        if not any(file in problem for file in counted):
            bad.report_file(problem.split(": ")[0], problem)
    bad.leave_out(f"of no case of the {dataset.layout} layout of {root}", strange, asked=False)
    return entries


def _note_others(entries: Sequence[Entry], kept: Sequence[Entry], reason: str, bad: BadFiles) -> None:
    inside = {id(entry) for entry in kept}
    bad.leave_out(reason, [entry.path for entry in entries if id(entry) not in inside])


def _held_out(entries: Sequence[Entry], file: Path, root: Path, bad: BadFiles) -> list[Entry]:
    if not file.is_file():
        raise DataError(f"{file}: expected a split file, got none; a run keeps it as split.json.")
    test = Split.load(file).test
    if not test:
        raise DataError(
            f"{file}: expected test patients to compare with, got none: validation patients were used to choose the "
            "model. Train with data.split.test above 0, or compare with patients of another folder."
        )
    kept = [entry for entry in entries if entry.patient_id in frozenset(test)]
    if not kept:
        raise DataError(f"{root}: expected the test patients of {file}, got none of them; check both paths.")
    bad.require_patients(test, kept, "test", root)
    return kept


# -- to one grid ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """Brings volumes to one grid, in RAS, with intensities in [0, 1].

    A volume that already has the shape of the grid keeps its place; any other is cut to its head, which is put in the
    middle. Floating-point volumes within [0, 1] keep their intensities; others are scaled by ``PERCENTILES``.

    Attributes:
        grid: voxels along each axis.
        spacing: voxel size in mm that all are resampled to; None to leave them as they are.
    """

    grid: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None

    def read(self, entry: Entry) -> Tensor:
        """Return float32 ``[1 1 H W D]``; DataError for a file that cannot be read or holds no head."""
        return self.place(entry.read())

    def place(self, file: VolumeFile) -> Tensor:
        """Return the volume of a file on the grid."""
        return self.place_with(file, None)[0]

    def place_with(self, file: VolumeFile, seg: VolumeFile | None) -> tuple[Tensor, np.ndarray | None]:
        """Return the volume of a file on the grid, and the labels ``seg``, on the same voxels, in its place."""
        data, _ = volumes.to_ras(file.data, file.header.affine)
        unit = file.header.dtype.kind == "f" and file.data.min() >= 0.0 and file.data.max() <= 1.0
        scaling = IntensityScaling(mode="range", lower=0.0, upper=1.0) if unit else PERCENTILES
        if data.shape == self.grid and (
            self.spacing is None or _close(file.header.ras_spacing, self.spacing)
        ):
            labels = None if seg is None else volumes.to_ras(seg.data, seg.header.affine)[0].copy()
            unit_data = scaling.scale(data, file.header.path).to_unit(data)
            return torch.from_numpy(unit_data)[None, None], labels
        placement = GridPlacement(spacing=self.spacing, grid=self.grid, intensity=scaling)
        placed = placement.place({"volume": file}, seg=seg)
        return torch.from_numpy(placed.images["volume"])[None, None], placed.seg


def prepare_for(
    real: Sequence[Entry],
    generated: Sequence[Entry],
    bad: BadFiles,
    *,
    grid: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> tuple[Preparation, list[Entry], list[Entry]]:
    """Return how both sets are brought to one grid, and the entries of each whose headers can be read.

    Raises DataError when generated volumes differ in their grid and none is given, or when voxel sizes differ and no
    ``spacing`` is given.

    Args:
        real: the real set.
        generated: the generated set.
        bad: notes files whose headers cannot be read.
        grid: by default that of the generated volumes, at ``spacing`` if there is one.
        spacing: voxel size in mm to resample to.
    """
    headers = [_headers(entries, bad) for entries in (real, generated)]
    for name, found in zip(("real", "generated"), headers, strict=True):
        if not found:
            raise DataError(f"expected at least one readable {name} volume, got none.")
    if spacing is None:
        _require_one_spacing({**headers[0], **headers[1]})
    preparation = Preparation(grid or _common_grid(headers[1], spacing), spacing)
    return preparation, list(headers[0]), list(headers[1])


def _headers(entries: Sequence[Entry], bad: BadFiles) -> dict[Entry, VolumeHeader]:
    found = {}
    for entry in entries:
        try:
            found[entry] = volumes.read_header(entry.path, channel=entry.channel)
        except DataError as error:
            bad.report(entry, error)
    return found


def grid_at(header: VolumeHeader, spacing: Spacing | None) -> tuple[int, int, int]:
    """Return the voxels along each axis of RAS that hold the whole field of view of a file at ``spacing``."""
    sides = np.asarray(header.shape)[_axis_order(header)]
    if spacing is not None and not _close(header.ras_spacing, spacing):
        sides = np.ceil(sides * np.asarray(header.ras_spacing) / spacing - _SPACING_TOLERANCE).astype(int)
    h, w, d = np.maximum(sides, 1).tolist()
    return h, w, d


def _common_grid(headers: Mapping[Entry, VolumeHeader], spacing: Spacing | None) -> tuple[int, int, int]:
    grids = {grid_at(header, spacing): header.path for header in headers.values()}
    if len(grids) > 1:
        (one, path), (other, second) = list(grids.items())[:2]
        raise DataError(
            f"expected generated volumes of one grid, got {one} in {path} and {other} in {second}; choose the "
            "grid to compare on with --grid H W D."
        )
    return next(iter(grids))


def _require_one_spacing(headers: Mapping[Entry, VolumeHeader]) -> None:
    first = next(iter(headers.values()))
    for header in headers.values():
        if not _close(header.ras_spacing, first.ras_spacing):
            sizes = [" × ".join(f"{mm:g}" for mm in h.spacing) for h in (header, first)]
            raise DataError(
                f"{header.path}: expected voxels of {sizes[1]} mm as in {first.path}, got {sizes[0]} mm; choose the "
                "voxel size to resample both to with --spacing X,Y,Z."
            )


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return bool(np.allclose(one, other, rtol=_SPACING_TOLERANCE, atol=0.0))


def _axis_order(header: VolumeHeader) -> list[int]:
    """Return which axes of the file run left-right, back-front and down-up."""
    return [next(i for i, to in enumerate(header.orientation) if to in ends) for ends in ("LR", "PA", "SI")]


def shuffled(entries: Sequence[Entry], *, seed: int) -> list[Entry]:
    """Return ``entries`` in an order that depends on ``seed`` only, one modality after the other."""
    order = np.random.default_rng(seed).permutation(len(entries))
    return sorted((entries[i] for i in order), key=lambda entry: entry.modality)
