"""Networks that others have published: file, source and licence of each.

A plain table; nothing here reads a file, downloads anything or imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prod9.measures.weights import WEIGHT_FILES

RECTIFIED_FLOW = "rectified_flow"
DDPM = "ddpm"

_CTMR = "NVIDIA-Medtech/NV-Generate-CTMR"
_OPEN, _NON_COMMERCIAL = "NVIDIA Open Model License", "NVIDIA non-commercial licence"


@dataclass(frozen=True)
class Released:
    """One published file of the MAISI family.

    Attributes:
        name: our name of it.
        file: its publisher's name of it.
        config: the shipped config that builds the network.
        source: repository.
        licence: of the weights.
        parameters: of the network.
        tensors: of the network.
        schedule: the noise schedule of its training; None for an autoencoder.
        autoencoder: the published autoencoder in whose latent it works.
        base: the published diffusion network that a control network steers.
    """

    name: str
    file: str
    config: str
    source: str
    licence: str
    parameters: int
    tensors: int
    schedule: str | None = None
    autoencoder: str | None = None
    base: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The names that its file may have."""
        return (self.file,)


_AUTOENCODER = {"config": "maisi/released/autoencoder", "parameters": 20_944_897, "tensors": 130}
_FLOW = {"parameters": 180_500_868, "tensors": 435, "schedule": RECTIFIED_FLOW}

RELEASED: Mapping[str, Released] = {
    entry.name: entry
    for entry in (
        Released("autoencoder_v1", "autoencoder_v1.pt", source=_CTMR, licence=_OPEN, **_AUTOENCODER),
        Released("autoencoder_v2", "autoencoder_v2.pt", source=_CTMR, licence=_NON_COMMERCIAL, **_AUTOENCODER),
        Released(
            "rflow-ct", "diff_unet_3d_rflow-ct.pt", "maisi/released/rflow-ct", _CTMR, _OPEN,
            **_FLOW, autoencoder="autoencoder_v1",
        ),
        Released(
            "rflow-mr", "diff_unet_3d_rflow-mr.pt", "maisi/released/rflow-mr", _CTMR, _NON_COMMERCIAL,
            **_FLOW, autoencoder="autoencoder_v2",
        ),
        Released(
            "rflow-mr-brain", "diff_unet_3d_rflow-mr-brain_v1.pt", "maisi/released/rflow-mr-brain", _CTMR, _OPEN,
            **_FLOW, autoencoder="autoencoder_v1",
        ),
        Released(
            "ddpm-ct", "diff_unet_3d_ddpm-ct.pt", "maisi/released/ddpm-ct", _CTMR, _OPEN,
            169_370_884, 372, schedule=DDPM, autoencoder="autoencoder_v1",
        ),
        Released(
            "controlnet-rflow-ct", "controlnet_3d_rflow-ct.pt", "maisi/released/controlnet-rflow-ct", _CTMR, _OPEN,
            72_037_072, 231, schedule=RECTIFIED_FLOW, base="rflow-ct",
        ),
        Released(
            "controlnet-ddpm-ct", "controlnet_3d_ddpm-ct.pt", "maisi/released/controlnet-ddpm-ct", _CTMR, _OPEN,
            68_644_944, 196, schedule=DDPM, base="ddpm-ct",
        ),
    )
}  # fmt: skip
"""By name."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose features losses and scores compare; ``files`` are accepted names, the first is preferred."""

    name: str
    files: tuple[str, ...]
    source: str
    licence: str
    config: None = None
    parameters: None = None


_TORCHVISION = ("torchvision's ImageNet weights", "BSD-3-Clause (code); ImageNet terms (weights)")
_SOURCES = {
    "alex": _TORCHVISION,
    "vgg": _TORCHVISION,
    "squeeze": _TORCHVISION,
    "medicalnet_resnet10_23datasets": ("Tencent/MedicalNet", "MIT"),
    "medicalnet_resnet50_23datasets": ("Tencent/MedicalNet", "MIT"),
    "radimagenet_resnet50": ("BMEII-AI/RadImageNet", "as its publisher grants"),
}
FEATURE_NETWORKS: Mapping[str, FeatureNetwork] = {
    name: FeatureNetwork(name, files, *_SOURCES[name]) for name, files in WEIGHT_FILES.items()
}
"""By name, as ``loss.perceptual.network`` spells it."""
