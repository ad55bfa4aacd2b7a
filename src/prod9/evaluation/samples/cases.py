"""Find the samples of each case in a folder, with the volume that they should equal, and score one case.

Samples are named as ``prod9 generate translate --num-samples`` names them: ``_0000.nii.gz``, ``_0001.nii.gz`` and so on
after the name of the case and the modality, in any folder below.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9 import volumes
from prod9.data.labels import canonical_seg
from prod9.data.layouts.names import bare
from prod9.data.splits import Split
from prod9.errors import DataError
from prod9.evaluation.paired import scale_by_target
from prod9.evaluation.regions import brain_of, find_regions
from prod9.evaluation.samples.calibration import coverage_curve, one_for_truth, rank_curve, score_samples
from prod9.evaluation.sets.appearance import power_spectrum
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from prod9.measures.metrics import PSNR_CAP
from prod9.pipelines.placement import align

REGIONS = ("brain", "tumour")
"""Where samples are scored."""
REFERENCED = ("spread_correlation", "crps")
"""Scores that are also computed with a sample in place of the truth."""

_NUMBER = re.compile(r"_(\d{4,})$")
_AGAIN = "make them with `prod9 generate translate --patient DIR --num-samples 8`"


@dataclass(frozen=True)
class Sampled:
    """The samples of one case and modality, and their truth."""

    truth: Entry
    samples: tuple[Entry, ...]


@dataclass(frozen=True)
class CaseScores:
    """What is kept of one case.

    Attributes:
        truth: the real volume.
        regions: region → score → value; see :func:`~prod9.evaluation.samples.calibration.score_samples`.
        references: those of ``REFERENCED`` in the brain with a sample in place of the truth.
        coverage: of the brain, for each nominal level.
        ranks: coverage of the intervals between ordered samples, in the brain.
        spectra: power spectra in dB ``[3 F]``: of the samples (mean), of their mean, of the truth.
    """

    truth: Entry
    regions: Mapping[str, Mapping[str, float]]
    references: Mapping[str, float]
    coverage: Tensor
    ranks: Tensor
    spectra: Tensor


def match_samples(
    truths: Sequence[Entry], made: Sequence[Entry], root: Path, *, split: Path | None, bad: BadFiles
) -> list[Sampled]:
    """Return the samples of each case with their truth, sorted by modality and case.

    ``bad`` notes cases without a truth. Raises DataError where there are no samples, or only one of a case, or not
    equally many of each.

    Args:
        truths: real volumes.
        made: all volumes of the folder of samples.
        root: that folder.
        split: a ``split.json``; samples of others than its test patients are left out.
        bad: notes cases that cannot be used.
    """
    groups = _by_case(made, root, bad)
    known = {entry.key: entry for entry in truths}
    tested = None if split is None else frozenset(Split.load(split).test)
    found: list[Sampled] = []
    for (case, modality), own in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        if tested is not None and own[0].patient_id not in tested:
            bad.leave_out(f"not of the test patients of {split}", [entry.path for entry in own])
            continue
        truth = known.get((case, modality))
        if truth is None:
            first = own[0].path
            expected = f"expected a real {modality} volume of {case} to compare with, got none"
            bad.report_file(str(first), f"{first}: {expected}.")
            continue
        found.append(Sampled(truth, tuple(own)))
    if not found:
        raise DataError(f"{root}: expected samples of the real cases, got none of them; check both paths.")
    _require_equal_numbers(found)
    return found


def _by_case(made: Sequence[Entry], root: Path, bad: BadFiles) -> dict[tuple[str, str], list[Entry]]:
    """Return (case, modality) → its samples in the order of their numbers."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    others: list[Entry] = []
    for entry in made:
        stem, case = _NUMBER.search(bare(entry.path.name)), _NUMBER.search(entry.case_id)
        if stem and case and stem[1] == case[1]:
            groups.setdefault((entry.case_id[: case.start()], entry.modality), []).append(entry)
        else:
            others.append(entry)
    if not groups:
        raise DataError(
            f"{root}: expected several samples of each case, named CASE_MODALITY_0000.nii.gz and so on, got "
            f"{len(others)} other volumes; {_AGAIN}."
        )
    # The mean of the samples lies beside them under the name of the case.
    alone = [entry.path for entry in others if entry.key not in groups]
    bad.leave_out("without a number of a sample at the end of its name", alone)
    return {key: sorted(own, key=lambda entry: entry.path.name) for key, own in groups.items()}


def _require_equal_numbers(found: Sequence[Sampled]) -> None:
    first = found[0]
    for each in found:
        count, entry = len(each.samples), each.samples[0]
        if count < 2:
            raise DataError(
                f"{entry.path}: expected two samples or more of {each.truth.case_id} {entry.modality}, got one, which "
                f"has no spread; {_AGAIN}."
            )
        if count != len(first.samples):
            raise DataError(
                f"{entry.path}: expected {len(first.samples)} samples as of {first.truth.case_id}, got {count} of "
                f"{each.truth.case_id}; make the missing ones, or remove the others."
            )


def score_case(case: Sampled, bad: BadFiles, *, fit: bool, resample: bool) -> CaseScores | None:
    """Read the volumes of a case and score them; None where a file cannot be used, which ``bad`` notes.

    Args:
        case: samples and truth.
        bad: notes what cannot be used.
        fit: first bring the mean of the samples to the truth by an affine map of intensities, and all samples with it.
        resample: bring samples to the voxels of the truth by their affines; otherwise other voxels are refused.
    """
    try:
        truth, samples, seg = _read(case, resample=resample)
    except DataError as error:
        bad.report(case.truth, error)
        return None
    brain = brain_of(truth)
    if not brain.any():
        bad.report(case.truth, DataError(f"{case.truth.path}: expected a head, got a volume of zeros."))
        return None
    unit, *scaled = _scaled(truth, samples, brain)
    samples = _fitted(samples, unit, brain) if fit else torch.stack(scaled)
    regions = find_regions(brain.float()[None, None], None if seg is None else seg[None, None])
    inside = {name: regions[name][0, 0] for name in REGIONS if name == "brain" or seg is not None}
    own, wanted = samples[:, brain], unit[brain]
    return CaseScores(
        case.truth,
        {name: _score(samples[:, where], unit[where]) for name, where in inside.items()},
        one_for_truth(own, REFERENCED),
        torch.tensor(coverage_curve(own, wanted)),
        torch.tensor(rank_curve(own, wanted)),
        _spectra(samples * brain, unit * brain),
    )


def _read(case: Sampled, *, resample: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the truth ``[H W D]``, the samples ``[N H W D]`` and canonical labels, all in RAS."""
    real = case.truth.read()
    files = {"truth": real, **{str(k): entry.read() for k, entry in enumerate(case.samples)}}
    aligned = align(files, resample=resample)
    truth, *samples = (_ras(file.data, real) for file in aligned.values())
    seg = None
    if case.truth.seg is not None:
        labels = volumes.read(case.truth.seg)
        align({"truth": real, "seg": labels})
        seg = _ras(canonical_seg(labels.data, case.truth.label_scheme, case.truth.seg), real)
    return truth.float(), torch.stack(samples).float(), seg


def _ras(data: Any, reference: volumes.VolumeFile) -> Tensor:
    return torch.from_numpy(volumes.to_ras(data, reference.header.affine)[0].copy())


def _scaled(truth: Tensor, samples: Tensor, brain: Tensor) -> list[Tensor]:
    """Return truth and samples with the brain of the truth in [0, 1], clipped; see :func:`scale_by_target`."""
    target, inside = truth[None, None], truth[brain]
    return [
        scale_by_target(volume[None, None], target, inside, (0.0, 0.995))[0][0, 0]
        for volume in (truth, *samples)
    ]


def _fitted(samples: Tensor, truth: Tensor, brain: Tensor) -> Tensor:
    """Return a · samples + b with the least-squares a and b of their mean for the truth in the brain."""
    mean, wanted = samples.mean(0)[brain].double(), truth[brain].double()
    centred = mean - mean.mean()
    slope = (centred * (wanted - wanted.mean())).sum() / centred.square().sum().clamp_min(1e-12)
    return (wanted.mean() + slope * (samples.double() - mean.mean())).float()


def _score(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the scores of samples ``[N V]``, with PSNR in dB of their mean, and of each sample averaged."""
    found = score_samples(samples, truth)
    if truth.numel() == 0:
        return {**found, "psnr_mean": torch.nan, "psnr_samples": torch.nan}
    return {
        **found,
        "psnr_mean": _psnr(samples.mean(0)[None], truth),
        "psnr_samples": _psnr(samples, truth),
    }


def _psnr(volumes: Tensor, truth: Tensor) -> float:
    error = (volumes - truth).square().mean(1)
    return (-10 * error.log10()).clamp(max=PSNR_CAP).mean().item()


def _spectra(samples: Tensor, truth: Tensor) -> Tensor:
    each: Iterable[Tensor] = (power_spectrum(sample) for sample in samples)
    return torch.stack(
        [torch.stack(list(each)).mean(0), power_spectrum(samples.mean(0)), power_spectrum(truth)]
    )
