"""Heads that differ from patient to patient, as NIfTI files of a few kilobytes, for the copy audit."""

import numpy as np
import torch
import torch.nn.functional as F

from prod9.volumes import write

SIDE = 24
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def head(seed):
    """Return one patient ``[24 24 24]``: an ellipsoid with tissue of its own."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    stretch = 1 + 0.1 * (torch.rand(3, generator=generator) - 0.5)
    radius = torch.stack([(a / s).square() for a, s in zip(axes, stretch, strict=True)]).sum(0).sqrt()
    coarse = torch.rand((1, 1, 5, 5, 5), generator=generator)
    tissue = F.interpolate(coarse, size=(SIDE,) * 3, mode="trilinear", align_corners=True)[0, 0]
    return torch.where(radius < 0.75, 0.3 + tissue, 0.0).numpy()


def write_heads(folder, heads, *, names=None):
    """Write ``heads`` as ``<name>_t1.nii.gz``, a patient each."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(heads):
        name = names[k] if names else f"{folder.name}{k:03d}"
        write(folder / f"{name}_t1.nii.gz", np.asarray(data, dtype=np.float32), AFFINE)
    return folder
