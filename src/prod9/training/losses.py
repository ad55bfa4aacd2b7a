"""Losses of stage 1: VAEGANLoss and its pieces.

Everything is arithmetic on tensors; ``training.algorithms.autoencoder_trainer`` calls the networks. All values are
float32, also under autocast.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.losses.dice import DiceCELoss
from torch import Tensor, nn

from prod9.label_maps import classes_of
from prod9.measures.perceptual import FeatureMatching
from prod9.types import AutoencoderOutput, Latent, Volume, VolumeOut

Scalar = Float[Tensor, ""]
PatchLogits = Float[Tensor, "B 1 h w d"]

Z_LIMIT = 2.0
"""Beyond ``|z| = 2`` the quantiser's tanh passes less than 8% of the gradient."""


# -- adversarial ----------------------------------------------------------------------------------
# The published objectives. MONAI's PatchAdversarialLoss applies tanh before the hinge (so it never reaches zero),
# LeakyReLU before least squares, and a sigmoid before BCE (refused under autocast).


def _hinge(logits: PatchLogits, is_real: bool) -> Scalar:
    return F.relu(1.0 - logits if is_real else 1.0 + logits).mean()


def _least_squares(logits: PatchLogits, is_real: bool) -> Scalar:
    return (logits - float(is_real)).square().mean()


def _bce(logits: PatchLogits, is_real: bool) -> Scalar:
    return F.softplus(-logits if is_real else logits).mean()


CRITERIA: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "hinge": _hinge,
    "least_squares": _least_squares,
    "bce": _bce,
}


def generator_adversarial_loss(fake_logits: PatchLogits, criterion: str) -> Scalar:
    """Return the generator's adversarial loss: small where the discriminator takes reconstructions for real.

    hinge: −mean D (Lim & Ye 2017); the others: the criterion with the label "real" (non-saturating).
    """
    logits = fake_logits.float()
    return -logits.mean() if criterion == "hinge" else CRITERIA[criterion](logits, True)


def discriminator_adversarial_loss(
    real_logits: PatchLogits, fake_logits: PatchLogits, criterion: str
) -> Scalar:
    """Return the mean of the criterion on real volumes and on reconstructions."""
    score = CRITERIA[criterion]
    return 0.5 * (score(real_logits.float(), True) + score(fake_logits.float(), False))


def r1_penalty(real_logits: PatchLogits, real: Volume) -> Scalar:
    """Return ``½ Σ_voxels |∇_x Σ_patches D(x)|²`` per sample and patch (R1, Mescheder et al. 2018).

    Dividing by the patches keeps crops and whole volumes on one scale. ``real`` must require a gradient, and
    ``real_logits`` must be computed from it. The result can be differentiated again.
    """
    (gradient,) = torch.autograd.grad(real_logits.float().sum(), real, create_graph=True)
    return 0.5 * gradient.float().square().sum() / real_logits.numel()


def adaptive_weight(
    reference_loss: Scalar, adversarial_loss: Scalar, last_layer: Tensor, *, maximum: float
) -> Scalar:
    """Return ``|∇ reference| / |∇ adversarial|`` at the decoder's last layer, in [0, maximum], no gradient.

    With it, the gradients of both losses have the same norm at the last layer (VQGAN, Esser et al. 2021).

    Args:
        reference_loss: of the reconstruction.
        adversarial_loss: of the generator.
        last_layer: weights ``[O C k k k]`` of the decoder's last convolution.
        maximum: of the result.
    """
    (reference,) = torch.autograd.grad(reference_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    ratio = reference.float().norm() / (adversarial.float().norm() + 1e-6)
    return ratio.clamp(0.0, maximum).detach()


# -- regularizers of the latent -------------------------------------------------------------------


def commitment_loss(z: Latent, codes: Latent) -> Scalar:
    """Return the mean squared distance of z to its code, which receives no gradient."""
    return F.mse_loss(z.float(), codes.detach().float())


def range_penalty(z: Latent) -> Scalar:
    """Return the mean of ``relu(|z| − 2)²``: it keeps z where the quantiser's tanh still has a gradient."""
    return F.relu(z.float().abs() - Z_LIMIT).square().mean()


def kl_divergence(z_mu: Latent, z_sigma: Latent) -> Scalar:
    """Return the KL divergence of N(z_mu, z_sigma²) from N(0, 1), the mean over latent values in nats.

    MAISI and MONAI's tutorials take the sum over a sample: this mean times the number of latent values.
    """
    mu, sigma = z_mu.float(), z_sigma.float()
    return 0.5 * (mu.square() + sigma.square() - 2 * sigma.log() - 1).mean()


# -- the sum --------------------------------------------------------------------------------------


class VAEGANLoss:
    """Reconstruction + perceptual + adversarial · adaptive weight + regularizers of the latent.

    A plain object, so that no perceptual network ends up in a state dict.

    Args:
        reconstruction: ``l1``, ``l2``, or for label maps ``labels``.
        reconstruction_weight: of that distance.
        perceptual: compares volumes, or features of the discriminator; None for no such term.
        perceptual_weight: of it.
        adversarial_weight: 0 for training without a discriminator.
        criterion: a key of ``CRITERIA``.
        adaptive: whether :func:`adaptive_weight` multiplies the adversarial weight.
        adaptive_max: its upper bound.
        start_step: training batch from which on the discriminator takes part, also in a perceptual term that uses it.
        commitment_weight: of :func:`commitment_loss`.
        range_weight: of :func:`range_penalty`.
        kl_weight: of :func:`kl_divergence`.
        kl_warmup_steps: training batches over which the weight of the KL divergence grows linearly.
        gradient_penalty: weight of :func:`r1_penalty` in the discriminator's loss.

    Raises:
        ValueError: for features of a discriminator without a discriminator.

    Example:
        >>> import torch
        >>> from prod9.training.losses import VAEGANLoss
        >>> loss = VAEGANLoss(
        ...     reconstruction="l1", reconstruction_weight=1.0, perceptual=None, perceptual_weight=0.0,
        ...     adversarial_weight=0.1, criterion="hinge", adaptive=True, adaptive_max=10.0, start_step=1000)
        >>> logits, real = torch.zeros(1, 1, 2, 2, 2), torch.rand(1, 1, 16, 16, 16)
        >>> loss.is_adversarial(999), loss.discriminator_losses(logits, logits, real=real)["total"].item()
        (False, 1.0)
    """

    def __init__(
        self,
        *,
        reconstruction: str,
        reconstruction_weight: float,
        perceptual: nn.Module | None,
        perceptual_weight: float,
        adversarial_weight: float,
        criterion: str,
        adaptive: bool,
        adaptive_max: float,
        start_step: int,
        commitment_weight: float = 0.0,
        range_weight: float = 0.0,
        kl_weight: float = 0.0,
        kl_warmup_steps: int = 0,
        gradient_penalty: float = 0.0,
    ) -> None:
        _check_choice("reconstruction", reconstruction, RECONSTRUCTIONS)
        _check_choice("criterion", criterion, CRITERIA)
        if isinstance(perceptual, FeatureMatching) and not adversarial_weight:
            raise ValueError(
                "perceptual: expected a discriminator for 'discriminator_features', got an adversarial weight of 0; "
                "raise it or choose 'focal_frequency'"
            )
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.criterion = criterion
        self.adaptive = adaptive
        self.adaptive_max = adaptive_max
        self.start_step = start_step
        self.gradient_penalty = gradient_penalty
        self.regularizers = {"commitment": commitment_weight, "range": range_weight, "kl": kl_weight}
        self.warmup_steps = {"kl": kl_warmup_steps}

    def is_adversarial(self, step: int) -> bool:
        """Return whether the discriminator takes part in training batch ``step``."""
        return self.adversarial_weight > 0 and step >= self.start_step

    @property
    def matches_features(self) -> bool:
        """Whether the perceptual term compares features of the discriminator."""
        return isinstance(self.perceptual, FeatureMatching) and self.perceptual_weight > 0

    def generator_losses(
        self,
        target: Volume,
        output: AutoencoderOutput,
        *,
        last_layer: Tensor,
        fake_features: Sequence[Tensor] | None,
        real_features: Sequence[Tensor] | None,
        step: int | None = None,
    ) -> dict[str, Scalar]:
        """Return every part, unweighted, and the weighted sum ``total``.

        Args:
            target: what was reconstructed.
            output: of the autoencoder.
            last_layer: weights ``[…]`` of its decoder, where gradients are compared.
            fake_features: of all layers of the discriminator for reconstructions, logits last; None while it takes no
                part.
            real_features: the same for ``target``; None also where no features are matched.
            step: training batches done, for annealed weights; None for their final values.
        """
        distance = RECONSTRUCTIONS[self.reconstruction](output.reconstruction.float(), target.float())
        losses = {"reconstruction": distance}
        total = self.reconstruction_weight * distance
        perceptual = self._perceptual(target, output.reconstruction, fake_features, real_features)
        if perceptual is not None:
            losses["perceptual"] = perceptual
            total = total + self.perceptual_weight * perceptual
        if fake_features is not None:
            adversarial = generator_adversarial_loss(fake_features[-1], self.criterion)
            weight = total.new_tensor(self.adversarial_weight)
            if self.adaptive:
                weight = weight * adaptive_weight(total, adversarial, last_layer, maximum=self.adaptive_max)
            losses |= {"adversarial": adversarial, "adversarial_weight": weight}
            total = total + weight * adversarial
        for name, weight in self.regularizers.items():
            if weight:
                losses[name] = REGULARIZERS[name](output)
                total = total + weight * self._warm(name, step) * losses[name]
        return {"total": total, **{k: v.detach() for k, v in losses.items()}}

    def _warm(self, name: str, step: int | None) -> float:
        steps = self.warmup_steps.get(name, 0)
        return 1.0 if step is None or step >= steps else (step + 1) / steps

    def _perceptual(
        self,
        target: Volume,
        reconstruction: VolumeOut,
        fake_features: Sequence[Tensor] | None,
        real_features: Sequence[Tensor] | None,
    ) -> Scalar | None:
        if self.perceptual is None or not self.perceptual_weight:
            return None
        if isinstance(self.perceptual, FeatureMatching):
            if fake_features is None or real_features is None:
                return None
            return self.perceptual(fake_features, real_features)
        # No module owns the network, so nothing else brings it to the volumes' device.
        return self.perceptual.to(target.device)(reconstruction, target)

    def discriminator_losses(
        self, real_logits: PatchLogits, fake_logits: PatchLogits, *, real: Volume
    ) -> dict[str, Scalar]:
        """Return ``total`` and its parts; ``real`` must require a gradient where R1 is on."""
        adversarial = discriminator_adversarial_loss(real_logits, fake_logits, self.criterion)
        losses = {
            "adversarial": adversarial.detach(),
            "logits_real": real_logits.detach().float().mean(),
            "logits_fake": fake_logits.detach().float().mean(),
        }
        total = adversarial
        if self.gradient_penalty:
            penalty = r1_penalty(real_logits, real)
            losses["gradient_penalty"] = penalty.detach()
            total = total + self.gradient_penalty * penalty
        return {"total": total, **losses}


def label_distance(logits: Tensor, target: Volume) -> Scalar:
    """Return cross-entropy plus Dice loss of class logits ``[B C H W D]`` and coded label maps ``[B 1 H W D]``.

    Dice loss (Milletari et al. 2016) is the mean over classes: a lesion is a hundredth of a head, and cross-entropy
    alone learns it last.
    """
    return _DICE_CE(logits, classes_of(target))


_DICE_CE = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
RECONSTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "labels": label_distance,
}

REGULARIZERS: dict[str, Callable[[AutoencoderOutput], Tensor]] = {
    "commitment": lambda output: commitment_loss(output.z_mu, output.latent),
    "range": lambda output: range_penalty(output.z_mu),
    "kl": lambda output: kl_divergence(output.z_mu, cast(Tensor, output.z_sigma)),
}


def _check_choice(name: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}; use one of these")
