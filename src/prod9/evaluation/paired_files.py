"""Scores of generated volumes against the real ones of the same case and modality, file by file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9 import volumes
from prod9.data.labels import canonical_seg
from prod9.errors import ConfigError, DataError, MissingDependencyError
from prod9.evaluation.paired import BETTER, BOUNDS, Perceptual, regional_scores
from prod9.evaluation.regions import REGIONS
from prod9.evaluation.score_table import Score
from prod9.evaluation.sets.intervals import mean_interval
from prod9.evaluation.sets.kept_pairs import KeptPairs
from prod9.evaluation.sets.members import number_members
from prod9.evaluation.sets.pair import joined
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from prod9.json_files import without_nan
from prod9.measures.perceptual import LPIPS
from prod9.measures.ssim import ms_ssim_scales, ssim_window
from prod9.measures.weights import LPIPS_NETWORKS, resolve_perceptual
from prod9.pipelines.placement import align
from prod9.system.progress import Progress

UNITS = {"psnr": "dB", "psnr_brasyn": "dB"}
Case = dict[str, Any]


def score_pairs(
    pairs: Sequence[tuple[Entry, Entry]],
    bad: BadFiles,
    *,
    resample: bool,
    replicates: int,
    seed: int,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> tuple[list[Score], list[Case]]:
    """Return the scores over all (real, generated) pairs and by modality, and the rows of each case.

    Args:
        pairs: volumes of the same case and modality.
        bad: notes files that cannot be used.
        resample: bring generated volumes to the voxels of the real ones; otherwise a DataError names two files
            whose grids differ.
        replicates: bootstrap samples.
        seed: of the bootstrap.
        progress: called after each pair.
        keep: a file to which the scores of each pair are written as they come, and from which they are read.
    """
    perceptual = find_lpips()
    kept = KeptPairs(keep, {"resample": resample, "lpips": perceptual is not None})
    cases: list[Case] = []
    patients: list[str] = []
    sides: tuple[int, ...] = ()
    for done, (real, generated) in enumerate(pairs, 1):
        key = kept.key(real, generated)
        rows = kept.get(key)
        if rows is None:
            read = _read_pair(real, generated, bad, resample=resample)
            if read is None:
                continue
            target, made, seg = read
            rows, sides = regional_scores(made, target, seg, perceptual=perceptual), tuple(target.shape[2:])
            kept.put(key, rows)
        else:
            sides = volumes.read_header(real.path, channel=real.channel).shape
        for region, row in rows.items():
            cases.append({"case": real.case_id, "modality": real.modality, "region": region, **row})
            patients.append(real.patient_id)
        if progress is not None:
            progress(done, len(pairs))
    if not cases:
        raise DataError("expected at least one readable pair of volumes, got none.")
    modalities = sorted({case["modality"] for case in cases})
    groups = ["all", *modalities] if len(modalities) > 1 else ["all"]
    scores = [
        score
        for modality in groups
        for score in _means(cases, patients, modality, sides, replicates=replicates, seed=seed)
    ]
    return scores, without_nan(cases)


def find_lpips() -> Perceptual | None:
    """Return the first LPIPS network whose weights are on this computer; None without any."""
    for network in LPIPS_NETWORKS:
        try:
            weights = resolve_perceptual(network)
        except (ConfigError, MissingDependencyError):
            continue
        assert weights is not None  # none of these is weightless
        return torch.no_grad()(LPIPS(weights=weights))
    return None


def _read_pair(
    real: Entry, generated: Entry, bad: BadFiles, *, resample: bool
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return target and made volume ``[1 1 H W D]`` in RAS, and the canonical segmentation if there is one.

    None where a file cannot be used, which ``bad`` notes.
    """
    files, seg = {}, None
    for name, entry in (("real", real), ("generated", generated)):
        try:
            files[name] = entry.read()
        except DataError as error:
            bad.report(entry, error)
            return None
    # Labels must not be interpolated, so segmentations stay on the real volume's grid.
    if real.seg is not None:
        try:
            files["seg"] = volumes.read(real.seg)
            align({"real": files["real"], "seg": files["seg"]})
            seg = _ras(canonical_seg(files["seg"].data, real.label_scheme, real.seg), files["real"])
        except DataError as error:
            bad.report(real, error)
            return None
    aligned = align({"real": files["real"], "generated": files["generated"]}, resample=resample)
    target, made = (_ras(aligned[name].data, files["real"]) for name in ("real", "generated"))
    return target.float(), made.float(), seg


def _ras(data: Any, reference: volumes.VolumeFile) -> Tensor:
    turned, _ = volumes.to_ras(data, reference.header.affine)
    return torch.from_numpy(turned.copy())[None, None]


def _means(
    cases: Sequence[Case],
    patients: Sequence[str],
    modality: str,
    sides: Sequence[int],
    *,
    replicates: int,
    seed: int,
) -> list[Score]:
    (members,) = number_members([(patient, "") for patient in patients])
    own = [k for k, case in enumerate(cases) if modality in ("all", case["modality"])]
    metrics = [name for name in cases[0] if name not in ("case", "modality", "region")]
    scores = []
    for region in REGIONS:
        places = [k for k in own if cases[k]["region"] == region]
        rows, owners = [cases[k] for k in places], members.patients[places]
        for metric in metrics:
            values = torch.tensor([row[metric] for row in rows], dtype=torch.float64)
            known = ~values.isnan()
            count, num_patients = int(known.sum()), len(owners[known].unique())
            interval = mean_interval(
                values, replicates=replicates, seed=seed, patients=owners, bounds=BOUNDS[metric]
            )
            scores.append(
                Score(
                    group="paired",
                    metric=metric,
                    value=values.nanmean().item(),
                    better=BETTER.get(metric, "higher"),
                    num_generated=count,
                    num_real=count,
                    patients_generated=num_patients,
                    patients_real=num_patients,
                    modality=modality,
                    region=region,
                    interval=interval,
                    unit=UNITS.get(metric, ""),
                    note=_note(metric, count, num_patients, sides),
                )
            )
    return scores


def _note(metric: str, count: int, patients: int, sides: Sequence[int]) -> str | None:
    if not count:
        return "no case has this region"
    window = f"window {ssim_window(sides)}"
    words = {"ms_ssim": f"{ms_ssim_scales(sides)} scales, {window}", "ssim": window, "ssim_brasyn": window}
    return joined([words.get(metric), "no interval: it needs 2 patients" if patients < 2 else None])
