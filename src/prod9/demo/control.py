"""The demo's stage 3: volumes generated under the segmentations of held-out patients, and how well they follow."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.demo.scores import Judges, Metrics, interval_of
from prod9.demo.translation import SegmenterOf
from prod9.evaluation.control import ControlScores, score_control
from prod9.evaluation.judges.segmenter import Segmenter
from prod9.evaluation.sets.patients import REGIONS, region_masks
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.volumes import write

MODALITIES = ("T1ce", "FLAIR")
"""Where the core of a tumour is seen best, and where its oedema is."""
WITHOUT = "without_control_"
"""Prefix of the files of the same draws without control."""


def score_stage3(
    pipeline: AbstractControlPipeline,
    judges: Judges,
    *,
    segmenter_of: SegmenterOf,
    class_segmenter: Segmenter,
    folder: Path,
    seed: int,
) -> Metrics:
    """Generate T1ce and FLAIR under each held-out tumour, with and without control, and compare.

    Args:
        pipeline: stage 3 of either family.
        judges: hold the sets of volumes.
        segmenter_of: gives a segmenter trained on real volumes of a class label; it reads the tumour back.
        class_segmenter: of every region of the tumour in T1ce, where the core and its enhancing ring are seen.
        folder: where the volumes go, with the segmentations that steered them, and the same draws without control.
        seed: of the first sample; the k-th has this seed plus k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, ControlScores] = {}
    by_class: Metrics = {}
    owners = torch.zeros(0, dtype=torch.int64)
    for name in MODALITIES:
        label = pipeline.generator.label_map[name]
        held_out = judges.sets["test"].of(label)
        ill = held_out.lesions.flatten(1).any(1)
        segs = held_out.segs[ill, 0]
        owners = held_out.patients[ill]
        controlled, base = _generate(pipeline, label, segs, seed)
        for k, (volume, without) in enumerate(zip(controlled, base, strict=True)):
            write(folder / f"{name}_{k:04d}.nii.gz", volume[0].numpy(), pipeline.generator.affine)
            write(folder / f"{WITHOUT}{name}_{k:04d}.nii.gz", without[0].numpy(), pipeline.generator.affine)
            seg_file = folder / f"seg_{k:04d}.nii.gz"
            write(seg_file, segs[k].numpy(), pipeline.generator.affine, dtype=np.uint8)
        again = judges.reconstructions["test"].of(label)
        sets = {
            "controlled": controlled,
            "base": base,
            "reconstructions": again.volumes[ill],
            "real": held_out.volumes[ill],
        }
        scores[name] = score_control(segmenter_of(label), held_out.lesions[ill], **sets)
        if name == MODALITIES[0]:
            by_class = _score_classes(class_segmenter, held_out.segs[ill], owners, sets)
    every = list(scores.values())
    return {
        "dice_whole_tumour": _mean([s.controlled for s in every]),
        "dice_whole_tumour_base": _mean([s.base for s in every]),
        "dice_whole_tumour_reconstructions": _mean([s.reconstructions for s in every]),
        **{name: s.to_dict() | {"cases": _cases(s)} for name, s in scores.items()},
        "dice_by_class": by_class,
        "patients": len(owners.unique()),
        "intervals": {
            key: interval_of(torch.stack([s.cases[kind] for s in every]).mean(0), owners, most=1.0)
            for key, kind in (("dice_whole_tumour", "controlled"), ("dice_whole_tumour_base", "base"))
        },
    }


def _score_classes(segmenter: Segmenter, segs: Tensor, owners: Tensor, sets: Mapping[str, Tensor]) -> Metrics:
    """Return the Dice of each region of the tumour in each set, with the interval of that with control."""
    masks, found = region_masks(segs), {}
    for r, region in enumerate(REGIONS):
        asked = masks[:, r : r + 1]
        there = asked.flatten(1).any(1)
        if not there.any():
            continue
        scores = score_control(replace(segmenter, region=r), asked, **sets)
        interval = interval_of(scores.cases["controlled"], owners[there], most=1.0)
        found[region] = scores.to_dict() | {"interval": interval}
    return found


def _generate(
    pipeline: AbstractControlPipeline, label: int, segs: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Return one volume ``[B 1 H W D]`` per segmentation with control, and from the same draws without."""
    generator, seeds = pipeline.generator, [seed + k for k in range(len(segs))]
    controlled = pipeline.sample_label(label, segs=segs.numpy(), seeds=seeds)
    base = generator.sample_label(label, seeds, lambda share: None)

    def decode(samples: Tensor) -> Tensor:
        volumes = [generator.decode_sample(sample) for sample in samples.split(1)]
        return torch.from_numpy(np.stack(volumes))[:, None]

    return decode(controlled), decode(base)


def _cases(scores: ControlScores) -> dict[str, list[float]]:
    """Return the Dice of each case with and without control."""
    return {kind: scores.cases[kind].tolist() for kind in ("controlled", "base")}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
