"""``prod9 evaluate patients``: do the modalities of a made patient show one head with one tumour?"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.data.layouts.find import find_cases
from prod9.errors import ConfigError
from prod9.evaluation.anatomy.finders import Finders, read_on_grid, train_finders
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.sets.intervals import Floor, mean_interval
from prod9.evaluation.sets.members import Members, number_members
from prod9.evaluation.sets.patients import PatientSet, first_entry, grid_and_spacing
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import BadFiles
from prod9.evaluation.settings import Report, silent
from prod9.evaluation.utility import TrainedSettings
from prod9.json_files import without_nan
from prod9.measures.metrics import GENERATED_BACKGROUND, foreground

GROUP = "agreement"
METRICS = ("tumour_agreement", "mutual_information")
BINS = 32
"""Grey levels of each volume in a joint histogram."""
_TUMOUR = 1
"""Regions that segmenters look for here: the whole tumour, which every modality shows in part."""

Plain = Float[Tensor, "H W D"]


def evaluate_patients(
    real_root: Path,
    made_root: Path,
    settings: TrainedSettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
) -> Evaluation:
    """Score how well each pair of modalities of made patients agrees, beside the pairs of held-out real patients.

    Raises ConfigError for fewer than two modalities or without held-out patients, DataError for folders and files that
    cannot be used.

    Args:
        real_root: folder of real patients with segmentations.
        made_root: folder of ``prod9 generate patients``; segmentations play no part.
        settings: what is asked for.
        device: where networks compute; the CPU by default.
        report: called with the progress of each part.
    """
    if len(settings.modalities) < 2:
        raise ConfigError(
            f"--modality: expected two or more to compare, got {', '.join(settings.modalities)}; add another one."
        )
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    cases = find_cases(made_root, modalities=settings.modalities)
    grid, spacing = grid_and_spacing(first_entry(cases[0], settings.modalities), settings)
    how: dict[str, Any] = {"grid": grid, "spacing": spacing, "bad": bad, "report": report}
    made = read_on_grid("made", cases, settings=settings, **how)
    finders = train_finders(real_root, settings, num_regions=_TUMOUR, without=made_root, device=device, **how)
    held_out = finders.held_out
    values = {"made": _agreements(made, finders, settings), "real": _agreements(held_out, finders, settings)}
    entries = [first_entry(case, settings.modalities) for case in cases]
    trained_on = find_training_patients(entries, made_root, split=settings.split)
    return Evaluation(
        command="evaluate patients",
        settings={**asdict(settings), "grid": list(grid), "spacing": list(spacing)},
        sets={
            "real": {"path": str(real_root), "patients_trained_on": finders.num_training},
            "generated": {"path": str(made_root), "patients": made.num_patients},
            "heldout": {"path": settings.heldout or str(real_root), "patients": held_out.num_patients},
        },
        patients={"made": made.num_patients, "real": held_out.num_patients},
        scores=[score.to_dict() for score in _scores(values, made, held_out, settings)],
        cases=without_nan([*_cases("made", values["made"], made), *_cases("real", values["real"], held_out)]),
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()])] if trained_on.patients else [],
    )


Pair = tuple[str, str]
Agreements = Mapping[str, Mapping[Pair, Tensor]]
"""Metric → pair of modalities → value of each case."""


def _agreements(patients: PatientSet, finders: Finders, settings: TrainedSettings) -> Agreements:
    names = settings.modalities
    found = {name: finders.find(name, patients.volumes[:, k : k + 1]) for k, name in enumerate(names)}
    pairs = list(combinations(range(len(names)), 2))
    values: dict[str, dict[Pair, Tensor]] = {metric: {} for metric in METRICS}
    for a, b in pairs:
        pair = names[a], names[b]
        values["tumour_agreement"][pair] = symmetric_dice(found[names[a]], found[names[b]])
        values["mutual_information"][pair] = torch.tensor(
            [mutual_information(one[a], one[b]) for one in patients.volumes], dtype=torch.float64
        )
    return values


def symmetric_dice(a: Tensor, b: Tensor) -> Float[Tensor, " N"]:
    """Return the Dice overlap of each pair of masks, 0 where only one is empty; NaN where both are."""
    both = (a & b).flatten(1).sum(1)
    sizes = a.flatten(1).sum(1) + b.flatten(1).sum(1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), torch.nan).double()


def mutual_information(a: Plain, b: Plain) -> float:
    """Return how much one volume says about the other in their common brain: 2 I(A; B) / (H(A) + H(B)), in [0, 1].

    From a joint histogram of ``BINS`` levels each, between the lowest and the highest value of a volume's brain: 1
    where either determines the other, 0 where they are independent (apart from a small bias upward by few voxels).
    Unlike a correlation it does not depend on which tissue is brighter. NaN without a common brain, or where both are
    flat.
    """
    brain = foreground(a, above=GENERATED_BACKGROUND) & foreground(b, above=GENERATED_BACKGROUND)
    if not brain.any():
        return math.nan
    x, y = (_levels(volume[brain]) for volume in (a, b))
    joint = torch.bincount(x * BINS + y, minlength=BINS**2).double().view(BINS, BINS)
    joint = joint / joint.sum()
    entropies = [torch.special.entr(p).sum() for p in (joint.sum(1), joint.sum(0), joint.flatten())]
    alone = entropies[0] + entropies[1]
    return (2 * (alone - entropies[2]) / alone).item() if alone > 0 else math.nan


def _levels(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-9) * BINS).long().clamp_max(BINS - 1)


def _scores(
    values: Mapping[str, Agreements], made: PatientSet, real: PatientSet, settings: TrainedSettings
) -> Iterator[Score]:
    members, theirs = number_members(*([(p, "") for p in patients.patients] for patients in (made, real)))
    for metric in METRICS:
        ours, reals = ({"all": _over_pairs(values[which][metric])} for which in ("made", "real"))
        for rows, which in ((ours, "made"), (reals, "real")):
            rows.update({" + ".join(pair): own for pair, own in values[which][metric].items()})
        for pair, own in ours.items():
            there = reals[pair]
            best = there.nanmean().item()
            how: dict[str, Any] = {
                "replicates": settings.replicates,
                "seed": settings.seed,
                "bounds": (0.0, 1.0),
            }
            interval, other = (
                mean_interval(found, patients=owners.patients, **how)
                for found, owners in ((own, members), (there, theirs))
            )
            counted = _counted(own, members), _counted(there, theirs)
            spread = f" ({other[0]:.3g} to {other[1]:.3g})" if other else ""
            yield Score(
                group=GROUP,
                metric=metric,
                value=own.nanmean().item(),
                better="floor",
                num_generated=int((~own.isnan()).sum()),
                num_real=int((~there.isnan()).sum()),
                patients_generated=counted[0],
                patients_real=counted[1],
                region=pair,
                interval=interval,
                floor=Floor(own.nanmean().item(), best, counted) if math.isfinite(best) else None,
                note=f"real patients {best:.3g}{spread}"
                if counted[0]
                else "no tumour was found in any made patient",
            )


def _counted(values: Tensor, owners: Members) -> int:
    """Return the patients of the cases that have a value."""
    return len(owners.patients[~values.isnan()].unique())


def _over_pairs(values: Mapping[Pair, Tensor]) -> Tensor:
    """Return the mean over the pairs of each case, without those where nothing can be compared."""
    return torch.stack(list(values.values())).nanmean(0)


def _cases(which: str, values: Agreements, patients: PatientSet) -> Iterator[dict[str, Any]]:
    for metric, pairs in values.items():
        for pair, own in pairs.items():
            for case, value in zip(patients.names, own.tolist(), strict=True):
                yield {"case": case, "set": which, "metric": metric, "pair": " + ".join(pair), "value": value}
