"""A tumour taken out of a held-out scan: its region is drawn again from what lies around it."""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from prod9.demo.scores import Metrics
from prod9.demo.sets import VolumeSet, show_best
from prod9.evaluation.control import region_contrasts
from prod9.pipelines.inpainting import InpaintingPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.volumes import read, write

MODALITIES = ("FLAIR", "T1ce")
"""Where a tumour stands out most."""
REGION = "region.nii.gz"
_MARGIN_MM = 5.0
"""The region is wider than the tumour by about this: tissue next to it is brighter too."""


def margin_voxels(spacing: float) -> int:
    """Return by how many voxels the region is wider than the tumour. spacing: mm per voxel."""
    return max(1, round(_MARGIN_MM / spacing))


def remove_tumour(pipeline: MaskGiTPipeline, held_out: VolumeSet, *, folder: Path, seed: int) -> Metrics:
    """Redraw the tumour of the held-out patient whose tumour is largest in one slice; return its contrasts.

    Writes ``region.nii.gz`` and, for each modality, ``NAME_scan.nii.gz`` and ``NAME_removed.nii.gz``. A contrast is the
    brightness of the region minus that of its mirror image, before and after. Without a patient with a tumour, nothing
    is written and the result is empty.

    Args:
        pipeline: of a label-conditional model.
        held_out: volumes of patients that no stage was trained on.
        folder: where the volumes go.
        seed: of the draw.
    """
    inpainting, scores = InpaintingPipeline(generator=pipeline), {}
    affine = pipeline.affine
    spacing = float(np.linalg.norm(affine[:3, 0]))
    for name in MODALITIES:
        own = held_out.of(pipeline.label_map[name])
        k = show_best(own)
        if k is None:
            return {}
        wide = ndimage.binary_dilation(own.lesions[k, 0].numpy(), iterations=margin_voxels(spacing))
        volume = own.volumes[k, 0].numpy()
        region = np.asarray(wide, dtype=bool) & (volume > 0)
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / f"{name}_scan.nii.gz", folder / REGION
        write(files[0], volume, affine)
        write(files[1], region.astype(np.uint8), affine, dtype=np.uint8)
        (made,) = inpainting.inpaint(read(files[0]), read(files[1]), name, seed=seed)
        write(folder / f"{name}_removed.nii.gz", made.data, affine)
        scores[name] = {
            "contrast": _contrast(volume, region),
            "contrast_removed": _contrast(made.data, region),
        }
    return scores


def _contrast(volume: np.ndarray, region: np.ndarray) -> float | None:
    """Return the brightness of ``region`` minus that of its mirror image; None if it lies on both sides throughout."""
    found, _ = region_contrasts(
        torch.from_numpy(volume)[None, None], torch.from_numpy(region.astype(np.int64))[None]
    )
    return found[0].item() if len(found) else None
