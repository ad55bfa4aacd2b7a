"""The demo's stage 3: volumes generated under the segmentations of held-out patients, and how well they follow."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.demo.scores import Judges, Metrics, interval_of
from prod9.demo.translation import SegmenterOf
from prod9.evaluation.control import ControlScores, score_control
from prod9.measures.montage import write_montage
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.volumes import write

MODALITIES = ("T1ce", "FLAIR")
"""Where the core of a tumour is seen best, and where its oedema is."""
_ROWS = 3


def score_stage3(
    pipeline: AbstractControlPipeline,
    judges: Judges,
    *,
    segmenter_of: SegmenterOf,
    folder: Path,
    picture: Path,
    seed: int,
) -> Metrics:
    """Generate T1ce and FLAIR under each held-out tumour, with and without control, and compare.

    Args:
        pipeline: stage 3 of either family.
        judges: hold the sets of volumes.
        segmenter_of: gives a segmenter trained on real volumes of a class label; it reads the tumour back.
        folder: where the volumes go, with the segmentations that steered them.
        picture: where the picture goes.
        seed: of the first sample; the k-th has this seed plus k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, ControlScores] = {}
    rows: list[list[tuple[str, np.ndarray]]] = []
    owners = torch.zeros(0, dtype=torch.int64)
    for name in MODALITIES:
        label = pipeline.generator.label_map[name]
        held_out = judges.sets["test"].of(label)
        ill = held_out.lesions.flatten(1).any(1)
        segs = held_out.segs[ill, 0]
        owners = held_out.patients[ill]
        controlled, base = _generate(pipeline, label, segs, seed)
        for k, volume in enumerate(controlled):
            write(folder / f"{name}_{k:04d}.nii.gz", volume[0].numpy(), pipeline.generator.affine)
            seg_file = folder / f"seg_{k:04d}.nii.gz"
            write(seg_file, segs[k].numpy(), pipeline.generator.affine, dtype=np.uint8)
        again = judges.reconstructions["test"].of(label)
        scores[name] = score_control(
            segmenter_of(label),
            held_out.lesions[ill],
            controlled=controlled,
            base=base,
            reconstructions=again.volumes[ill],
            real=held_out.volumes[ill],
        )
        rows += _draw(name, held_out.volumes[ill], segs, controlled, base)
    write_montage(picture, rows)
    every = list(scores.values())
    return {
        "dice_whole_tumour": _mean([s.controlled for s in every]),
        "dice_whole_tumour_base": _mean([s.base for s in every]),
        "dice_whole_tumour_reconstructions": _mean([s.reconstructions for s in every]),
        **{name: s.to_dict() for name, s in scores.items()},
        "patients": len(owners.unique()),
        "intervals": {
            key: interval_of(torch.stack([s.cases[kind] for s in every]).mean(0), owners, most=1.0)
            for key, kind in (("dice_whole_tumour", "controlled"), ("dice_whole_tumour_base", "base"))
        },
    }


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


def _draw(
    name: str, real: Tensor, segs: Tensor, controlled: Tensor, base: Tensor
) -> list[list[tuple[str, np.ndarray]]]:
    """Return the rows of the picture: the patients with the largest tumours."""
    largest = (segs > 0).flatten(1).sum(1).argsort(descending=True)[:_ROWS].tolist()
    return [
        [
            (f"{name}: segmentation given", segs[k].float().numpy() / 3.0),
            ("generated under it", controlled[k, 0].numpy()),
            ("the same draws without", base[k, 0].numpy()),
            ("the patient's own scan", real[k, 0].numpy()),
        ]
        for k in largest
    ]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
