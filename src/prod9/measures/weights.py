"""Finds the files of pretrained networks on this computer, without downloads and without torch.

``resolve_perceptual`` checks a configuration that names such a network before training starts.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from prod9.errors import ConfigError, MissingDependencyError
from prod9.system.machine import expand, home

OFFLINE_NETWORKS = ("none", "focal_frequency", "discriminator_features")
"""Perceptual terms that need no weights."""

LPIPS_NETWORKS = ("alex", "vgg", "squeeze")

WEIGHT_FILES: dict[str, tuple[str, ...]] = {
    "alex": ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"),
    "vgg": ("vgg16-397923af.pth",),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth"),
    "medicalnet_resnet10_23datasets": ("resnet_10_23dataset.pth",),
    "medicalnet_resnet50_23datasets": ("resnet_50_23dataset.pth",),
    "radimagenet_resnet50": ("ResNet50.pt",),
}
"""Accepted names of each network's file, given by their publishers; messages recommend the first."""


@dataclass(frozen=True)
class PerceptualWeights:
    """Files of one network: ``backbone``, and for LPIPS the linear ``heads`` of the lpips package."""

    network: str
    backbone: Path
    heads: Path | None = None


def resolve_perceptual(network: str) -> PerceptualWeights | None:
    """Return the files of a perceptual network; None for those that need none.

    Raises ConfigError with the missing file, the folders that were searched, and the networks without weights.
    """
    if network in OFFLINE_NETWORKS:
        return None
    if network not in WEIGHT_FILES:
        raise ConfigError(
            f"perceptual network: expected {' or '.join((*OFFLINE_NETWORKS, *WEIGHT_FILES))}, "
            f"got {network!r}; choose one of them"
        )
    heads = _lpips_heads(network) if network in LPIPS_NETWORKS else None
    return PerceptualWeights(network=network, backbone=find_weights(network), heads=heads)


def find_weights(network: str) -> Path:
    """Return the first existing file of ``network`` in ``weight_folders()``; ConfigError if there is none."""
    folders = weight_folders()
    for folder in folders:
        for name in WEIGHT_FILES[network]:
            if (folder / name).is_file():
                return folder / name
    raise ConfigError(
        f"weights of {network!r}: expected the file {WEIGHT_FILES[network][0]}, found none in "
        f"{', '.join(map(str, folders))}; put it there (PROD9_WEIGHTS_DIR names a folder of your own), "
        f"or choose a term that needs no weights: {', '.join(OFFLINE_NETWORKS)}"
    )


def weight_folders() -> list[Path]:
    """Return the folders that may hold weights: PROD9_WEIGHTS_DIR, then the caches of torch.hub and Hugging Face.

    Without a home folder, only caches that a variable names are included.
    """
    own = os.environ.get("PROD9_WEIGHTS_DIR")
    own_home = home()
    at_home = None if own_home is None else own_home / ".cache"
    cache = _named("XDG_CACHE_HOME", at_home)
    torch_home = _named("TORCH_HOME", cache and cache / "torch")
    hf_home = _named("HF_HOME", cache and cache / "huggingface")
    hf = _named("HF_HUB_CACHE", hf_home and hf_home / "hub")
    hubs = ("checkpoints", "medicalnet", "radimagenet")
    return [
        *([expand(own)] if own else []),
        *([torch_home / "hub" / name for name in hubs] if torch_home else []),
        *(sorted(hf.glob("models--TencentMedicalNet--*/snapshots/*")) if hf else []),
    ]


def _named(variable: str, default: Path | None) -> Path | None:
    """Return the folder that an environment variable names, else ``default``; None where there is no home."""
    value = os.environ.get(variable)
    return expand(value) if value else default


def _lpips_heads(network: str) -> Path:
    spec = importlib.util.find_spec("lpips")  # finds the package's folder without running it
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"perceptual network {network!r} needs the linear heads of the lpips package; "
            "install it with: pip install 'prod9[perceptual]'"
        )
    return Path(spec.origin).parent / "weights" / "v0.1" / f"{network}.pth"
