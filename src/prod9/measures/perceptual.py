"""Perceptual distances between volumes: LPIPS, 3D and 2D medical networks, and two that need no weights.

Each is a module from a reconstruction and its target, both ``[B C H W D]`` in [0, 1], to one number (FeatureMatching:
from two lists of discriminator features). Networks are frozen and loaded from local files; callers keep them in plain
objects, out of every state dict.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from monai.networks.nets.resnet import resnet10, resnet50
from safetensors.torch import load_file
from torch import Tensor, nn

from prod9.errors import ConfigError, MissingDependencyError
from prod9.measures.weights import LPIPS_NETWORKS, PerceptualWeights, resolve_perceptual
from prod9.types import Volume

Scalar = Float[Tensor, ""]
Slices = Float[Tensor, "N 3 height width"]

# Outputs of these layers of torchvision's `features` are compared, as in the LPIPS paper (Zhang et al. 2018).
LPIPS_LAYERS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
# LPIPS was fitted on ImageNet statistics of images in [-1, 1].
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)


def build_perceptual(network: str) -> nn.Module | None:
    """Return the perceptual term of ``loss.perceptual.network``; None for ``none``.

    Raises ConfigError where weights are missing or do not fit, see ``resolve_perceptual``.
    """
    weights = resolve_perceptual(network)
    if weights is None:
        return WEIGHTLESS[network]()
    if network in LPIPS_NETWORKS:
        return LPIPS(weights=weights)
    if network == "radimagenet_resnet50":
        return RadImageNetDistance(weights=weights)
    return MedicalNetDistance(weights=weights)


def check_perceptual(network: str, path: Path) -> None:
    """Load ``path`` strictly into the features of ``network``; ConfigError where it does not fit."""
    weights = PerceptualWeights(network=network, backbone=path)
    if network in LPIPS_NETWORKS:
        _torchvision_features(weights)
    elif network == "radimagenet_resnet50":
        RadImageNetDistance(weights=weights)
    else:
        MedicalNetDistance(weights=weights)


# -- without weights ------------------------------------------------------------------------------


class FocalFrequencyLoss(nn.Module):
    """Squared distance of 3D spectra, with larger weights for frequencies of larger distance.

    Focal frequency loss (Jiang et al., ICCV 2021) with a 3D orthonormal Fourier transform: the weight of a
    frequency is the distance there to the power ``alpha`` over its maximum in that volume, without gradient.
    """

    def __init__(self, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, reconstruction: Volume, target: Volume) -> Scalar:
        """Return the mean over batch, channels and frequencies."""
        difference = reconstruction.float() - target.float()  # the transform is linear: one is enough
        spectrum = torch.fft.fftn(difference, dim=(2, 3, 4), norm="ortho")
        distance = torch.view_as_real(spectrum).square().sum(-1)
        weight = distance.detach() ** (self.alpha / 2)
        weight = weight / weight.amax(dim=(2, 3, 4), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return (weight * distance).mean()


class FeatureMatching(nn.Module):
    """Mean L1 distance of the discriminator's hidden features (Wang et al., CVPR 2018)."""

    def forward(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Scalar:
        """Return the mean over layers; of ``fake`` and ``real`` the last entry, the logits, does not count."""
        pairs = zip(fake[:-1], real[:-1], strict=True)
        return torch.stack([(f.float() - r.detach().float()).abs().mean() for f, r in pairs]).mean()


WEIGHTLESS: dict[str, Callable[[], nn.Module | None]] = {
    "none": lambda: None,
    "focal_frequency": FocalFrequencyLoss,
    "discriminator_features": FeatureMatching,
}


# -- with weights ---------------------------------------------------------------------------------


class LPIPS(nn.Module):
    """Learned perceptual distance, 2.5D: the mean over fixed slices of all three planes, 0 for equal volumes.

    Compares every ``every``-th slice of each axis; MONAI draws slices at random, so its values are not reproducible.
    Equals the lpips package on each slice.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, weights: PerceptualWeights, every: int = 2) -> None:
        super().__init__()
        if weights.heads is None:
            raise ValueError(
                f"weights: expected linear heads for LPIPS, got none for {weights.network!r}; use resolve_perceptual"
            )
        self.every = every
        self.layers = LPIPS_LAYERS[weights.network]
        self.features = _torchvision_features(weights)[: self.layers[-1] + 1]
        heads = _read(weights.heads)
        for i in range(len(self.layers)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"])
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1))
        _freeze(self)

    def forward(self, reconstruction: Volume, target: Volume) -> Scalar:
        """Return the distance; volumes in [0, 1], sides of at least 32."""
        return _over_planes(self._distance, reconstruction, target, self.every)

    def _distance(self, x: Slices, y: Slices) -> Scalar:
        x, y = ((2 * image - 1 - self.shift) / self.scale for image in (x, y))
        total = x.new_zeros(())
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in self.layers:
                head = self.get_buffer(f"head{self.layers.index(i)}")
                total = total + (_unit(x) - _unit(y)).square().mul(head).sum(1).mean()
        return total


class RadImageNetDistance(nn.Module):
    """Distance of ResNet-50 features trained on radiological images (Mei et al. 2022), 2.5D as LPIPS."""

    def __init__(self, *, weights: PerceptualWeights, every: int = 2) -> None:
        super().__init__()
        self.every = every
        network = _torchvision("resnet50")(weights=None)
        self.features = nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier
        state = {k.removeprefix("backbone."): v for k, v in _read(weights.backbone).items()}
        _load(self.features, state, weights.backbone)
        _freeze(self)

    def forward(self, reconstruction: Volume, target: Volume) -> Scalar:
        """Return the distance; volumes in [0, 1]."""
        return _over_planes(self._distance, reconstruction, target, self.every)

    def _distance(self, x: Slices, y: Slices) -> Scalar:
        return _feature_distance(self.features(2 * x - 1), self.features(2 * y - 1))


class MedicalNetDistance(nn.Module):
    """Distance of 3D ResNet features trained on 23 segmentation data sets (Med3D, Chen et al. 2019)."""

    def __init__(self, *, weights: PerceptualWeights) -> None:
        super().__init__()
        build = resnet10 if "resnet10" in weights.network else resnet50
        network = build(
            spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False
        )
        state = {k: v for k, v in _read(weights.backbone).items() if not k.startswith("conv_seg.")}
        _load(network, state, weights.backbone)
        stem = (network.conv1, network.bn1, network.act, network.maxpool)
        self.features = nn.Sequential(*stem, network.layer1, network.layer2, network.layer3, network.layer4)
        _freeze(self)

    def forward(self, reconstruction: Volume, target: Volume) -> Scalar:
        """Return the distance; each volume is standardised first, as MedicalNet was trained."""
        x, y = (_standardise(v.float().flatten(0, 1)[:, None]) for v in (reconstruction, target))
        return _feature_distance(self.features(x), self.features(y))


def _over_planes(distance: Callable[[Slices, Slices], Scalar], x: Volume, y: Volume, every: int) -> Scalar:
    """Average ``distance`` over the three planes, grey slices repeated to three channels."""
    planes = [distance(_slices(x, axis, every), _slices(y, axis, every)) for axis in range(3)]
    return torch.stack(planes).mean()


def _slices(volume: Volume, axis: int, every: int) -> Slices:
    planes = volume.float().movedim(2 + axis, 2)[:, :, ::every]
    return planes.flatten(0, 2)[:, None].expand(-1, 3, -1, -1)


def _unit(x: Tensor) -> Tensor:
    # ε inside the root: its gradient at 0 stays finite.
    return x / torch.sqrt(x.square().sum(1, keepdim=True) + 1e-20)


def _feature_distance(x: Tensor, y: Tensor) -> Scalar:
    return (_unit(x) - _unit(y)).square().sum(1).mean()


def _standardise(x: Volume) -> Volume:
    std, mean = torch.std_mean(x, dim=(2, 3, 4), keepdim=True)
    return (x - mean) / (std + 1e-6)


def _freeze(module: nn.Module) -> None:
    module.eval().requires_grad_(False)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(
            f"the perceptual network {name!r} needs torchvision; install it with: "
            "pip install 'prod9[perceptual]'"
        ) from error
    return {
        "alex": models.alexnet,
        "vgg": models.vgg16,
        "squeeze": models.squeezenet1_1,
        "resnet50": models.resnet50,
    }[name]


def _torchvision_features(weights: PerceptualWeights) -> nn.Sequential:
    features = _torchvision(weights.network)(weights=None).get_submodule("features")
    saved = _read(weights.backbone).items()
    state = {k.removeprefix("features."): v for k, v in saved if k.startswith("features.")}
    _load(features, state, weights.backbone)
    if not isinstance(features, nn.Sequential):
        raise TypeError(f"torchvision's {weights.network} has no sequential features")
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the layer before it may be compared
    return features


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published file by name; ConfigError for anything else.

    torch's own message is hidden, since it recommends to unpickle files without a check.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or type(error).__name__}); check the path and its permissions."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{path}: expected the tensors of published weights, got other objects or damaged bytes "
            f"({type(error).__name__}); get the file from its publisher again."
        ) from None


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: expected the published weights, got others ({str(error).splitlines()[1].strip()}); "
            "get the file from its publisher again."
        ) from error
