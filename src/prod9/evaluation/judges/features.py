"""Feature extractors for scores of distributions; none of them needs downloaded weights.

Scores of different extractors cannot be compared with each other, nor with published Fréchet distances, so every score
holds the ``name`` of its extractor.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prod9.evaluation.judges.classifier import ModalityClassifier
from prod9.evaluation.judges.networks import build_seeded, coarsen, conv_block
from prod9.types import Volume

Features = Float[Tensor, "N D"]
Maps = Float[Tensor, "B F h w d"]
PlaneFeatures = Float[Tensor, "B S P"]
Planes = tuple[Tensor, Tensor, Tensor]
"""``PlaneFeatures`` of the three axes, which differ in their number of slices."""

PLANE_CELLS = 2
CENTRAL = 0.6
MAX_SLICES = 16
"""Slices that are used along each axis: at most this many, evenly spaced over its ``CENTRAL`` share."""


class FeatureExtractor(Protocol):
    """Maps volumes ``[B 1 H W D]`` in [0, 1] to one row of features each."""

    name: str

    def __call__(self, x: Volume) -> Features:
        """Return features, float32."""
        ...


class HasState(Protocol):
    """Anything with weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name."""
        ...


class Encoder(HasState, Protocol):
    """A stage-1 network of either family."""

    def encode(self, x: Volume) -> Tensor | tuple[Tensor, Tensor]:
        """Return z before quantisation, or mean and standard deviation."""
        ...


class SliceExtractor(FeatureExtractor, Protocol):
    """An extractor that also gives features of slices, for the Fréchet distance in 2.5D."""

    def planes(self, x: Volume) -> Planes:
        """Return features of ``slice_places`` along each of the three axes, float32."""
        ...


class AbstractMapFeatures(ABC):
    """Extractors that are 3D networks: a slice of their feature maps stands for a slab of the volume."""

    name: str

    @abstractmethod
    def maps(self, x: Volume) -> Maps:
        """Return feature maps."""

    def planes(self, x: Volume) -> Planes:
        """Return, for slices of the maps, means over 2² cells and the deviation over the whole slice."""
        maps = self.maps(x).float()
        return _plane(maps, 0), _plane(maps, 1), _plane(maps, 2)


def _plane(maps: Maps, axis: int) -> PlaneFeatures:
    maps = maps.movedim(2 + axis, 1)
    chosen = maps[:, slice_places(maps.shape[1])]
    flat = chosen.flatten(0, 1)
    cells = F.adaptive_avg_pool2d(flat, PLANE_CELLS).flatten(1)
    rows = torch.cat([cells, flat.std((2, 3), correction=0)], dim=1)
    return rows.unflatten(0, chosen.shape[:2])


def slice_places(length: int) -> list[int]:
    """Return the slices that are used of an axis of ``length``; the ends of a head hold little information."""
    count = min(max(round(length * CENTRAL), 1), MAX_SLICES)
    start = (length - length * CENTRAL) / 2
    return [min(int(start + (k + 0.5) * length * CENTRAL / count), length - 1) for k in range(count)]


class AutoencoderFeatures(AbstractMapFeatures):
    """Latents of a stage-1 encoder before quantisation or sampling, averaged over 1³, 2³ and 4³ cells."""

    def __init__(self, autoencoder: Encoder, *, scales: Sequence[int] = (1, 2, 4)) -> None:
        self.autoencoder = autoencoder
        self.scales = scales
        self.name = f"autoencoder-{fingerprint(autoencoder)}"

    def __call__(self, x: Volume) -> Features:
        """Return Z · Σ scale³ features per volume."""
        z = self.maps(x).float()
        pooled = [F.adaptive_avg_pool3d(z, scale).flatten(1) for scale in self.scales]
        return torch.cat(pooled, dim=1)

    def maps(self, x: Volume) -> Maps:
        """Return z; of a KL autoencoder, its mean."""
        latent = self.autoencoder.encode(x)
        return latent[0] if isinstance(latent, tuple) else latent


class RandomFeatures(AbstractMapFeatures):
    """Means and deviations of feature maps of an untrained 3D network, whose weights depend on ``seed`` only."""

    def __init__(self, *, seed: int = 0, widths: Sequence[int] = (8, 16, 32)) -> None:
        self.network = build_seeded(
            lambda: nn.Sequential(
                *(conv_block(i, o, stride=2) for i, o in zip((1, *widths), widths, strict=False))
            ),
            seed=seed,
        )
        self.network.eval().requires_grad_(False)
        self.name = f"random-{seed}"

    def __call__(self, x: Volume) -> Features:
        """Return two features per channel and level."""
        h, rows = coarsen(x), []
        for block in self.network:
            h = block(h)
            rows += [h.mean((2, 3, 4)), h.std((2, 3, 4), correction=0)]
        return torch.cat(rows, dim=1)

    def maps(self, x: Volume) -> Maps:
        """Return the last feature maps as a new tensor."""
        return self.network(coarsen(x))


class ClassifierFeatures(AbstractMapFeatures):
    """Features of a modality classifier that was trained on the real set."""

    def __init__(self, classifier: ModalityClassifier) -> None:
        self.classifier = classifier
        self.name = f"classifier-{fingerprint(classifier)}"

    def __call__(self, x: Volume) -> Features:
        """Return the input of the classifier's last layer."""
        return self.classifier.features(x)

    def maps(self, x: Volume) -> Maps:
        """Return the maps that the features are pooled from."""
        return self.classifier.maps(x)


@torch.no_grad()
def extract(extractor: FeatureExtractor, volumes: Volume, *, batch_size: int = 4) -> Features:
    """Return the features of all volumes on the CPU, computed ``batch_size`` at a time."""
    return torch.cat([extractor(part).cpu() for part in volumes.split(batch_size)])


def fingerprint(network: HasState) -> str:
    """Return the first 12 hex digits of the SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
