"""Extractors from published weights on this computer: MedicalNet in 3D, RadImageNet slice by slice."""

import torch
from torch import Tensor

from prod9.errors import ConfigError
from prod9.evaluation.judges.features import (
    AbstractMapFeatures,
    Features,
    Maps,
    Planes,
    SliceExtractor,
    fingerprint,
    slice_places,
)
from prod9.measures.perceptual import MedicalNetDistance, RadImageNetDistance
from prod9.measures.weights import WEIGHT_FILES, PerceptualWeights
from prod9.system.machine import expand
from prod9.types import Volume

NETWORKS = tuple(name for name in WEIGHT_FILES if name.startswith(("medicalnet", "radimagenet")))


class MedicalNetFeatures(AbstractMapFeatures):
    """Means of the last maps of a 3D ResNet (Med3D, Chen et al. 2019); each volume is standardised first."""

    def __init__(self, *, weights: PerceptualWeights) -> None:
        self.network = MedicalNetDistance(weights=weights).features
        self.name = f"{weights.network}-{fingerprint(self.network)}"

    def __call__(self, x: Volume) -> Features:
        """Return 512 or 2048 features per volume."""
        return self.maps(x).mean((2, 3, 4))

    def maps(self, x: Volume) -> Maps:
        """Return the last feature maps, whose sides are an eighth of the volume's."""
        deviation, mean = torch.std_mean(x, dim=(2, 3, 4), keepdim=True)
        return self.network.to(x.device)((x - mean) / (deviation + 1e-6))


class RadImageNetFeatures:
    """Pooled features of slices by a 2D ResNet-50 (Mei et al. 2022); a volume has their means along each axis."""

    def __init__(self, *, weights: PerceptualWeights) -> None:
        self.network = RadImageNetDistance(weights=weights).features
        self.name = f"{weights.network}-{fingerprint(self.network)}"

    def __call__(self, x: Volume) -> Features:
        """Return 3 · 2048 features per volume."""
        return torch.cat([plane.mean(1) for plane in self.planes(x)], dim=1)

    def planes(self, x: Volume) -> Planes:
        """Return 2048 features of each of ``slice_places``."""
        return self._plane(x, 0), self._plane(x, 1), self._plane(x, 2)

    def _plane(self, x: Volume, axis: int) -> Tensor:
        slices = x[:, 0].movedim(1 + axis, 1)
        chosen = slices[:, slice_places(slices.shape[1])]
        grey = 2 * chosen.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) - 1
        return self.network.to(x.device)(grey).mean((2, 3)).unflatten(0, chosen.shape[:2])


def load_file_features(spec: str) -> SliceExtractor:
    """Build the extractor of ``PATH``, or of ``NETWORK=PATH`` where the file does not have its original name.

    Raises ConfigError for a missing file, an unknown network or weights that do not fit it.
    """
    network, _, rest = spec.rpartition("=")
    path = expand(rest)
    if not path.is_file():
        raise ConfigError(
            f"--extractor file:{spec}: expected a file of weights, got {path}, which does not exist."
        )
    if not network:
        network = next((name for name in NETWORKS if path.name in WEIGHT_FILES[name]), "")
    if network not in NETWORKS:
        raise ConfigError(
            f"--extractor file:{spec}: expected weights of {', '.join(NETWORKS)}, got {network or path.name}; say "
            "which they are, as in file:radimagenet_resnet50=PATH."
        )
    weights = PerceptualWeights(network=network, backbone=path)
    if network.startswith("medicalnet"):
        return MedicalNetFeatures(weights=weights)
    return RadImageNetFeatures(weights=weights)
