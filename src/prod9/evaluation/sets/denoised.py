"""Rows of volumes that were freed of noise, so that no score of them rewards grain.

Distances of distributions reward noise of the right strength, whatever it lies on. Volumes of both sets are therefore
denoised alike before they are compared once more: from the noise that the real volumes of their modality have, or from
their own where it is higher, by :func:`~prod9.measures.denoise.denoised`.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prod9.errors import DataError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.sets.appearance import RADIOMICS, box_of, power_spectrum, radiomics
from prod9.evaluation.sets.edges import border_sharpness
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation
from prod9.measures.denoise import denoised
from prod9.measures.metrics import GENERATED_BACKGROUND, foreground
from prod9.measures.noise import noise_level

MEASURED = 16
"""Real volumes of each modality whose median noise level is the strength of the denoiser."""
EDGES, SPECTRUM = "edges, denoised", "spectrum, denoised"

Levels = Mapping[str, float]
"""Modality → noise level of its real volumes, as a share of the intensity range."""


def name_denoised(name: str) -> str:
    """Return the name of the denoised volumes' row beside the row ``name``."""
    return f"{name}, denoised"


def measure_noise(
    real: Sequence[Entry], preparation: Preparation, bad: BadFiles, *, most: int = MEASURED
) -> Levels:
    """Return the median noise level of the first ``most`` readable volumes of each modality; 0 without any brain.

    Args:
        real: volumes of any modalities.
        preparation: brings them to one grid and range.
        bad: notes the files that cannot be used.
        most: volumes of each modality that are measured.
    """
    found: dict[str, list[Tensor]] = {}
    for entry in real:
        levels = found.setdefault(entry.modality, [])
        if len(levels) >= most:
            continue
        try:
            volume = preparation.read(entry)
        except DataError as error:
            bad.report(entry, error)
            continue
        levels.append(noise_of(volume[0, 0]))
    return {name: torch.stack(own).median().item() for name, own in found.items() if own}


def noise_of(volume: Float[Tensor, "H W D"]) -> Float[Tensor, ""]:
    """Return the noise level in the brain of a volume in [0, 1]; 0 where the brain is too thin to have one."""
    return noise_level(volume, foreground(volume, above=GENERATED_BACKGROUND)).nan_to_num(0.0)


def free_of_noise(volume: Float[Tensor, "H W D"], level: float) -> Float[Tensor, "H W D"]:
    """Return the brain without noise of ``level``, or of its own noise where that is stronger; 0 outside of it."""
    brain = foreground(volume, above=GENERATED_BACKGROUND)
    box = box_of(brain)
    strength = noise_of(volume).clamp_min(level)
    result = torch.zeros_like(volume)
    result[box] = denoised(volume[box][None, None], brain[box][None, None], level=strength[None])[0, 0]
    return result


def describe_denoised(
    volume: Float[Tensor, "H W D"], level: float, extractors: Sequence[SliceExtractor], device: torch.device
) -> dict[str, Tensor]:
    """Return rows ``[1 K]`` of the volume without noise of ``level``: spectrum, radiomics, borders and features.

    Args:
        volume: ``[H W D]`` in [0, 1].
        level: standard deviation of its noise.
        extractors: of features.
        device: where to compute.
    """
    clean = free_of_noise(volume, level)
    box = box_of(foreground(clean, above=GENERATED_BACKGROUND))
    on_device = clean[None, None].to(device)
    return {
        SPECTRUM: power_spectrum(clean)[None],
        name_denoised(RADIOMICS): radiomics(clean)[None],
        EDGES: border_sharpness(clean[box])[None, None],
        **{name_denoised(extractor.name): extractor(on_device).cpu() for extractor in extractors},
    }
