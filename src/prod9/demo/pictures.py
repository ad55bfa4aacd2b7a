"""The demo's pictures: held-out scans, their reconstructions and generated volumes, and many generated ones."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.demo.sets import Autoencoder, VolumeSet, reconstruct
from prod9.measures.montage import write_gallery, write_montage


def write_pictures(
    folder: Path,
    *,
    autoencoder: Autoencoder,
    held_out: VolumeSet,
    generated: Tensor,
    labels: Tensor,
    label_map: dict[str, int],
) -> None:
    """Write ``montage.png`` (three planes) and ``generated.png`` (one axial slice of every volume).

    The montage shows the held-out patient with the largest lesion.

    Args:
        folder: where the pictures go.
        autoencoder: stage 1, for the reconstructions.
        held_out: volumes of patients that no stage was trained on.
        generated: volumes ``[N 1 H W D]``.
        labels: their classes ``[N]``.
        label_map: class of each modality.
    """
    shown = int(held_out.lesions.flatten(1).sum(1).argmax()) // len(label_map) * len(label_map)
    rows = []
    for name, label in label_map.items():
        case = shown + int((held_out.labels[shown : shown + len(label_map)] == label).nonzero()[0, 0])
        real = held_out.volumes[case : case + 1]
        made = generated[labels == label]
        cells = [
            (f"{name}, held-out", _image(real[0])),
            ("reconstructed", _image(reconstruct(autoencoder, real)[0])),
            *((f"generated {k}", _image(volume)) for k, volume in enumerate(made[:2])),
        ]
        rows.append(cells)
    write_montage(folder / "montage.png", rows)
    gallery = [
        (name, [_image(volume) for volume in generated[labels == label]]) for name, label in label_map.items()
    ]
    write_gallery(folder / "generated.png", gallery)


def _image(volume: Tensor) -> np.ndarray:
    return volume[0].to(torch.float32).numpy()
