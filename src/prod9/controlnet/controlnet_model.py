"""ControlNetRF: steers a frozen DiffusionModelRF with a segmentation, source images, a label, or several.

A copy of the U-Net's way down runs beside it on the same latent, plus the encoded condition, and adds a residual
to each skip connection and to the middle (ControlNet, arXiv 2302.05543). The layers that lead back start at zero,
so the controlled network starts as the base. It subclasses MONAI's ControlNetMaisi and keeps its parameter names,
so NVIDIA's released weights load strictly, and its forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.controlnet.condition import NUM_BITS, ControlCondition, bit_planes, one_hot_planes, require_below
from prod9.controlnet.condition_encoder import ConditionEncoder
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals, DiffusionModelRF
from prod9.diffusion.native_unet import use_native_unet
from prod9.types import Latent, Time, Volume

Told = Literal["mask", "image", "label"]
FRESH = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
"""What no diffusion network has: the encoder of the condition and the way back."""
_GEOMETRY = ".time_emb_proj."


@dataclass(frozen=True)
class Initialisation:
    """Which tensors of a control network came from the diffusion network, by name.

    copied: unchanged. folded: with what the base adds for its geometry (spacing, body regions) in the bias, since
    the control network is not told of it. fresh: the others, by design (``FRESH``).
    """

    copied: tuple[str, ...]
    folded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.copied)} tensors copied from the diffusion network, {len(self.folded)} with its geometry "
            f"folded in, {len(self.fresh)} fresh (encoder of the condition and zero convolutions)"
        )


class ControlNetRF(ControlNetMaisi):
    """A control network of one kind of U-Net; ``start_from`` gives it that U-Net's weights.

    The first keywords are those of the U-Net. downsampling_factor: voxels a latent position along each axis.
    conditions: what ``encode`` takes, any combination. num_mask_classes: of a segmentation, background included.
    seg_planes: ``one_hot``, a plane a class, or ``bits``, MAISI's eight binary digits. source_modalities: a slot
    each for ``image``. encoder: ``condition_encoder``, which sees small lesions at every scale and takes labels, or
    ``maisi``, the published network's, which halves the sides with each of ``channels`` after the first. channels:
    widths of its stages. use_checkpointing: recompute activations in the backward pass.
    """

    down_blocks: Any
    middle_block: Any
    controlnet_cond_embedding: Any

    def __init__(
        self,
        *,
        latent_channels: int,
        num_channels: Sequence[int],
        attention_levels: Sequence[bool],
        num_head_channels: Sequence[int],
        num_res_blocks: int,
        downsampling_factor: int,
        norm_num_groups: int = 32,
        resblock_updown: bool = True,
        include_fc: bool = True,
        num_class_embeds: int | None = None,
        conditions: Sequence[Told] = ("mask",),
        num_mask_classes: int = 4,
        seg_planes: Literal["one_hot", "bits"] = "one_hot",
        source_modalities: Sequence[str] = (),
        encoder: Literal["condition_encoder", "maisi"] = "condition_encoder",
        channels: Sequence[int] = (16, 32, 64),
        use_checkpointing: bool = False,
        native_ops: bool = True,
    ) -> None:
        self._check(conditions, source_modalities, num_class_embeds, encoder, channels, downsampling_factor)
        mask_planes = NUM_BITS if seg_planes == "bits" else num_mask_classes
        planes = mask_planes * ("mask" in conditions) + len(source_modalities)
        super().__init__(
            spatial_dims=3,
            in_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            num_channels=num_channels,
            attention_levels=attention_levels,
            norm_num_groups=norm_num_groups,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            num_class_embeds=num_class_embeds,
            conditioning_embedding_in_channels=max(planes, 1),
            conditioning_embedding_num_channels=tuple(channels) if encoder == "maisi" else (1,),
            use_checkpointing=use_checkpointing,
            include_fc=include_fc,
        )
        self.latent_channels = latent_channels
        self.downsampling_factor = downsampling_factor
        self.conditions = tuple(conditions)
        self.num_mask_classes = num_mask_classes
        self.seg_planes = seg_planes
        self.source_modalities = tuple(source_modalities)
        self.num_labels = num_class_embeds or 0
        if encoder == "condition_encoder":
            self.controlnet_cond_embedding = ConditionEncoder(
                in_channels=planes,
                num_labels=self.num_labels if "label" in conditions else 0,
                out_channels=num_channels[0],
                downsampling_factor=downsampling_factor,
                channels=channels,
            )
        if native_ops:
            use_native_unet(self)

    @staticmethod
    def _check(
        conditions: Sequence[str],
        source_modalities: Sequence[str],
        num_class_embeds: int | None,
        encoder: str,
        channels: Sequence[int],
        downsampling_factor: int,
    ) -> None:
        if ("image" in conditions) != bool(source_modalities):
            raise ValueError(
                "source_modalities must name the source images if and only if conditions hold 'image', got "
                f"{list(source_modalities)} and {list(conditions)}."
            )
        if "label" in conditions and (num_class_embeds is None or encoder == "maisi"):
            raise ValueError(
                "the condition 'label' needs encoder 'condition_encoder' and a diffusion network with class labels, "
                f"got encoder {encoder!r} and num_class_embeds {num_class_embeds}; leave it out."
            )
        if encoder == "maisi" and 2 ** (len(channels) - 1) != downsampling_factor:
            raise ValueError(
                f"channels must have {downsampling_factor.bit_length()} entries for encoder 'maisi' and a "
                f"downsampling factor of {downsampling_factor}, since each after the first halves the sides, got "
                f"{list(channels)}."
            )

    # -- weights of the base -------------------------------------------------------------------------

    @torch.no_grad()
    def start_from(self, base: DiffusionModelRF, *, geometry: FlowCondition) -> Initialisation:
        """Take over the weights of ``base`` and return what came of each tensor.

        geometry: a batch of one; the base's answer to its spacing and regions becomes part of the biases, so that
        the copy computes there what the base computes. Raises ValueError, having changed nothing, when a tensor
        that should be copied is missing there or has another shape: a partial copy would look like a start.
        """
        theirs, extra = base.state_dict(), base.geometry_embedding(geometry)
        values: dict[str, Tensor] = {}
        folded: list[str] = []
        for name in [name for name in self.state_dict() if not name.startswith(FRESH)]:
            if name not in theirs:
                continue
            values[name] = theirs[name]
            if _GEOMETRY in name and extra.shape[1]:
                values[name] = _folded(name, theirs, extra)
                folded.append(name)
        self._require_complete(values)
        self.load_state_dict(values, strict=False)
        fresh = tuple(name for name in self.state_dict() if name not in values)
        return Initialisation(tuple(name for name in values if name not in folded), tuple(folded), fresh)

    def _require_complete(self, values: dict[str, Tensor]) -> None:
        faults = []
        for name, own in self.state_dict().items():
            if name.startswith(FRESH):
                continue
            if name not in values:
                faults.append(f"{name} is missing")
            elif values[name].shape != own.shape:
                faults.append(f"{name} has shape {tuple(values[name].shape)}, not {tuple(own.shape)}")
        if faults:
            raise ValueError(
                f"Expected the diffusion network that this control network copies, got another ({len(faults)} "
                f"tensors differ: {'; '.join(faults[:3])}); build it from that network's own settings."
            )

    # -- condition and residuals ---------------------------------------------------------------------

    def encode(self, control: ControlCondition) -> Tensor:
        """Return what depends on the condition alone ``[B E h w d]``, once a sample.

        For a label alone the sides are 1: it is the same everywhere. Raises ValueError for a condition that is
        missing, not taken, or of other classes, labels or sides than the network's.
        """
        planes = self._planes(control)
        if not isinstance(self.controlnet_cond_embedding, ConditionEncoder):
            assert planes is not None  # _check: labels need the other encoder
            return self.controlnet_cond_embedding(planes * ~control.is_dropped.view(-1, 1, 1, 1, 1))
        label = control.label if self._takes("label", control.label) else None
        if label is not None:
            # One past the last label is the row of "not told", so the embedding alone would not complain.
            require_below(label, self.num_labels, "labels")
        grid = (1, 1, 1) if planes is None else tuple(n // self.downsampling_factor for n in planes.shape[2:])
        return self.controlnet_cond_embedding(planes, label, grid=grid, dropped=control.is_dropped)

    def _planes(self, control: ControlCondition) -> Volume | None:
        parts: list[Tensor] = []
        if self._takes("mask", control.seg):
            make = bit_planes if self.seg_planes == "bits" else one_hot_planes
            assert control.seg is not None
            parts.append(make(control.seg, self.num_mask_classes))
        if self._takes("image", control.images):
            assert control.images is not None
            if control.images.shape[1] != len(self.source_modalities):
                raise ValueError(
                    f"Expected a slot each for {', '.join(self.source_modalities)}, got {control.images.shape[1]}."
                )
            parts.append(control.images)
        if not parts:
            return None
        planes, factor = torch.cat(parts, dim=1), self.downsampling_factor
        if any(side % factor for side in planes.shape[2:]):
            raise ValueError(
                f"Expected sides that are multiples of {factor}, the voxels of a latent position, got "
                f"{tuple(planes.shape[2:])}; bring segmentation and images to the model's grid."
            )
        return planes

    def _takes(self, name: Told, given: Tensor | None) -> bool:
        """Tell whether the network is told ``name``; refuse it where it must be given and is not."""
        if name in self.conditions and given is None:
            raise ValueError(
                f"Expected a condition of {' and '.join(self.conditions)}, got no {name}; give every part."
            )
        return name in self.conditions

    def residuals(
        self, x_t: Latent, timesteps: Time, condition: FlowCondition, control: Tensor
    ) -> ControlResiduals:
        """Return what to add to the base at ``x_t``; ``control`` is what ``encode`` returned for these samples."""
        labels = condition.label if self.num_class_embeds is not None else None
        if control.shape[2:] not in (x_t.shape[2:], (1, 1, 1)):
            raise ValueError(
                f"Expected a condition encoded on the latent's grid {tuple(x_t.shape[2:])}, got "
                f"{tuple(control.shape[2:])}; bring the segmentation to the model's grid."
            )
        # Called as a module, so that what is done to calls, such as compiling them, holds here.
        down, mid = self(x_t, timesteps, class_labels=labels, encoded=control)
        return ControlResiduals(tuple(down), mid)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Latent,
        timesteps: Time,
        controlnet_cond: Volume | None = None,
        conditioning_scale: float = 1.0,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        encoded: Float[Tensor, "B E _h _w _d"] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return residuals from the arguments of MONAI's forward, which encodes the planes at every call.

        encoded: what ``encode`` made of them, in their place.
        """
        if context is not None:
            raise ValueError("this network takes no context, got one; leave it out.")
        if (encoded is None) == (controlnet_cond is None):
            raise ValueError("expected either controlnet_cond or what encode made of it; pass one of them.")
        features, embedding = encoded, self.controlnet_cond_embedding
        if features is None and isinstance(embedding, ConditionEncoder):
            features = embedding(controlnet_cond, None, grid=x.shape[2:])
        elif features is None:
            features = embedding(controlnet_cond)
        residuals = self._run(x, timesteps, features, class_labels).scaled(conditioning_scale)
        return list(residuals.down), residuals.mid

    def _run(self, x: Tensor, timesteps: Tensor, features: Tensor, labels: Tensor | None) -> ControlResiduals:
        emb = self._prepare_time_and_class_embedding(x, timesteps, labels)
        h = self.conv_in(x)
        h = h + features.to(h.dtype)
        skips = [h]
        for block in self.down_blocks:
            h, own = self._call(block, h, emb, None)
            skips += own
        h = self._call(self.middle_block, h, emb, None)
        down = tuple(zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True))
        return ControlResiduals(down, self.controlnet_mid_block(h))

    def _call(self, block: nn.Module, *arguments: Any) -> Any:
        if self.use_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


def _folded(name: str, theirs: dict[str, Tensor], extra: Tensor) -> Tensor:
    """Return a projection of the time embedding without its geometry, or its bias with it."""
    stem = name.rpartition(".")[0]
    weight, width = theirs[f"{stem}.weight"], extra.shape[1]
    if name.endswith(".weight"):
        return weight[:, :-width]
    silu = nn.functional.silu(extra[0].to(weight.dtype))
    return theirs[name] + weight[:, -width:] @ silu
