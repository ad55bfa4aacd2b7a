"""The recipes of stage 3: a control network on a frozen base, of either family."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.load import config_to_dict
from prod9.config.schema import (
    ControlNetLossConfig,
    FlowControlLossConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaskGiTControlNetLightningConfig,
    RectifiedFlowModelConfig,
    TransformerConfig,
)
from prod9.controlnet.condition import ControlCondition
from prod9.data.splits import Split
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import SourceStart
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.host_copies import computed
from prod9.models.checkpoint_header import recorded_config, require_flow
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.control_flow import FlowControl, RegionContrast
from prod9.training.algorithms.control_tokens import TokenControl
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.tally import Tally
from prod9.training.batches import ControlLatentBatch, ControlTokenBatch
from prod9.training.data.control import ControlNetDataModule
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.base import AbstractRecipe, C, Draws, Encoding, Samples, named_input
from prod9.training.recipes.conditions import CONDITIONS, Condition
from prod9.training.recipes.control_samples import ControlSamples
from prod9.training.recipes.flow import flow_condition
from prod9.training.recipes.frozen import FrozenAutoencoder, latent_data_module, token_data_module
from prod9.training.recipes.headline import Headline, Yardstick

_SAMPLES = ("fid", "kid", "inception_score", "region_contrast", "foreground_dice")
_METRICS = (
    "loss", "loss_base", "loss_region", "loss_region_base", "classifier_accuracy",
    *_SAMPLES, *(f"{name}_base" for name in _SAMPLES),
)  # fmt: skip
_WEIGHTS = (
    "control_dropout",
    "anchor_weight",
    "background_weight",
    "region_weight",
    "region_margin",
    "class_weights",
)
"""Keywords of ControlNetTrainer; all other fields of the loss are those of its family."""


@dataclass(frozen=True)
class TokenControlBases:
    """The decoder that is steered, and the autoencoder of its tokens."""

    base: Loaded[AbstractTokenDecoder]
    autoencoder: Loaded[AutoencoderFSQ]

    def base_config(self, config: MaskGiTControlNetLightningConfig) -> TransformerConfig:
        """Return the base's config with the data, steps and folders of ``config``, which reads the same samples."""
        values = config_to_dict(config)
        names = ("output_dir", "seed", "data", "training", "trainer", "sliding_window")
        return recorded_config(
            self.base, TransformerConfig, overrides=[(name, values[name]) for name in names]
        )


@dataclass(frozen=True)
class FlowControlBases:
    """The U-Net that is steered, and the autoencoder of its latents."""

    base: Loaded[DiffusionModelRF]
    autoencoder: Loaded[AutoencoderKlMaisi]

    @property
    def scale_factor(self) -> float:
        """Factor of the latents, with which the base was trained."""
        return float(self.base.header["data"]["scale_factor"])

    @cached_property
    def base_config(self) -> MaisiDiffusionConfig:
        """The config that the base was trained with."""
        return recorded_config(self.base, MaisiDiffusionConfig)

    @property
    def geometry(self) -> FlowCondition:
        """Condition of the base on the training grid: a batch of one."""
        affine = np.asarray(self.base.header["data"]["reference_affine"])
        spacing = torch.tensor(np.linalg.norm(affine[:3, :3], axis=0), dtype=torch.float32)
        return FlowCondition.of_heads(torch.zeros(1, dtype=torch.int64), spacing[None])


B = TypeVar("B", TokenControlBases, FlowControlBases)
T = TypeVar("T", ControlTokenBatch, ControlLatentBatch)


class AbstractControlRecipe(AbstractRecipe[C, B, T]):
    """Stage 3 of either family. A validation also samples with control and without.

    The base is in no module tree, like the autoencoder: frozen, neither stored nor averaged.

    Attributes:
        base_name: the key of the base in ``inputs`` and in ``architecture``.
        stored: the key of a batch that the autoencoder decodes.
        controlnet: the network that is trained; a final class builds it, its algorithm and its sampler.
        steered: what the sampler calls of the base.
        steering: what it calls of the control network.
        sample_shape: of one sample.
        scale_factor: of latents, None for tokens.
    """

    metrics = _METRICS
    headline = Headline(
        text="loss {value} under control",
        metric="loss",
        digits=3,
        yardsticks=(Yardstick(text="{value} without it", metric="loss_base"),),
        also=(Yardstick(text="{value} where something is segmented", metric="loss_region"),),
    )
    base_name: ClassVar[str]
    stored: ClassVar[str]
    config: Any
    controlnet: Any
    algorithm: ControlNetTrainer
    sampler: Any
    steered: Any
    steering: Any
    sample_shape: tuple[int, ...]
    scale_factor: float | None = None

    def __init__(self, config: C, bases: B | None = None) -> None:
        super().__init__(config, bases)
        self.base: Any = self.bases.base.network.requires_grad_(False).eval()
        autoencoder: Loaded[Any] = self.bases.autoencoder
        self.autoencoder = FrozenAutoencoder(autoencoder, config)
        self.sampled = ControlSamples(self.config, self.autoencoder)

    # -- what a final class supplies ----------------------------------------------------------------

    @abstractmethod
    def target(self, batch: T) -> Tensor:
        """Return what the algorithm corrupts: tokens, or latents scaled to a deviation of 1."""

    @abstractmethod
    def condition(self, batch: T) -> Condition | FlowCondition:
        """Return the condition of the base."""

    @abstractmethod
    def control(self, batch: T) -> ControlCondition:
        """Return the condition of the control network; dropped where a segmentation is missing."""

    def start_of(self, control: ControlCondition) -> dict[str, Any]:
        """Return where the sampler starts, as keywords; nothing by default."""
        del control
        return {}

    @abstractmethod
    def decode(self, stored: Tensor) -> np.ndarray:
        """Return the volume ``[H W D]`` in [0, 1] of tokens or latents as they are stored, a batch of one."""

    # -- what the families share --------------------------------------------------------------------

    def networks(self) -> dict[str, nn.Module]:
        """Return the control network."""
        return {"controlnet": self.controlnet}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the control network: its sections, and those of what it was copied from."""
        sections = self.bases.base.header["architecture"]
        return {
            "controlnet": self.config.model.model_dump(mode="json"),
            "condition": self.config.condition.model_dump(mode="json"),
            self.base_name: sections[self.base_name],
            "autoencoder": sections["autoencoder"],
        }

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where base and autoencoder are, and their hashes."""
        return {
            self.base_name: self.describe(self.bases.base),
            "autoencoder": self.describe(self.bases.autoencoder),
        }

    def place(self, device: torch.device) -> None:
        """Bring autoencoder and base to ``device``."""
        self.autoencoder.place(device)
        self.base.to(device).eval()

    def prepare(self, data: AbstractDataModule) -> None:
        """Train the classifier of the Inception Score where the configuration asks for it."""
        self.sampled.train_classifier(data, self._decode_item)

    @torch.no_grad()
    def _decode_item(self, item: Mapping[str, Any]) -> np.ndarray:
        return self.decode(item[self.stored][None].to(next(self.base.parameters()).device))

    def losses(self, batch: T, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of what is corrupted, under control."""
        return self.algorithm.compute_losses(
            self.target(batch),
            self.condition(batch),
            self.control(batch),
            generator=generator,
            foreground=batch["foreground"],
            step=step,
        )

    def tally(self, batch: T, index: int, draws: Draws) -> Tally:
        """Count what adds to the losses, with control and without; sample for the first held-out lesions."""
        self.sample_for(batch, index, draws)  # here, where averaged weights are
        return self.algorithm.tally(
            self.target(batch),
            self.condition(batch),
            self.control(batch),
            generator=draws.for_batch(index),
            foreground=batch["foreground"],
        )

    @torch.no_grad()
    def sample_for(self, batch: T, index: int, draws: Draws) -> None:
        """Sample for the first of a batch, where it is among the first held-out lesions."""
        if self.sampled.wants(batch):
            values = cast(Mapping[str, Any], batch)
            one: Any = {name: value[:1] for name, value in values.items()}
            stored = (one[self.stored], *self._draw(one, index, draws))
            self.sampled.add(one, [self.decode(value) for value in stored])

    def _draw(self, one: T, index: int, draws: Draws) -> list[Tensor]:
        """Return what is sampled for a batch of one, with control and without, from the same random numbers."""
        condition, shape, control = self.condition(one), (1, *self.sample_shape), self.control(one)
        controlled = self.sampler.sample_with_controlnet(
            self.steered,
            shape,
            condition,
            [draws.for_sample(index)],
            controlnet=self.steering,
            control=self.controlnet.encode(control),
            **self.start_of(control),
            **self.config.control.kwargs(),
        )
        base = self.sampler.sample(self.steered, shape, condition, [draws.for_sample(index)])
        scale = self.scale_factor
        return [drawn if scale is None else drawn / scale for drawn in (controlled, base)]

    def begin_validation(self) -> None:
        """Forget the samples of the last validation."""
        self.sampled.samples = []

    def set_scores(self, draws: Draws) -> dict[str, Tensor]:
        """Return the scores of the samples, see :meth:`ControlSamples.scores`."""
        return self.sampled.scores(draws.device)

    def samples(self, count: int, draws: Draws) -> Samples:
        """Return segmentation, real volume, and samples with and without control."""
        del draws
        return Samples(self.sampled.rows(count))


class TokenControlRecipe(
    AbstractControlRecipe[MaskGiTControlNetLightningConfig, TokenControlBases, ControlTokenBatch]
):
    """Stage ``maskgit_controlnet``: a segmentation or a label that steers a trained transformer."""

    metrics = (*_METRICS, "accuracy", "accuracy_base", "accuracy_region", "accuracy_region_base")
    base_name = "transformer"
    stored = "target_indices"
    base: AbstractTokenDecoder
    config: MaskGiTControlNetLightningConfig

    def __init__(
        self, config: MaskGiTControlNetLightningConfig, bases: TokenControlBases | None = None
    ) -> None:
        super().__init__(config, bases)
        sections = self.bases.base.header["architecture"]
        self._condition_of = CONDITIONS[sections["transformer"]["kind"]]
        self.controlnet = ModelFactory.create_controlnet(
            config.model,
            config.condition,
            base=self.base,
            base_model=self.bases.base_config(config).model,
            autoencoder=FSQModelConfig.model_validate(sections["autoencoder"]),
        )
        family = TokenControl(
            decoder=self.base,
            controlnet=self.controlnet,
            scheduler=ModelFactory.create_scheduler(config.masking),
            **config.loss.kwargs(*_WEIGHTS),
        )
        self.algorithm = ControlNetTrainer(family=family, **_weights(config.loss))
        self.sampler = ModelFactory.create_sampler(config.sampler, config.masking)
        self.steered, self.steering = self.base, self.controlnet
        self.sample_shape = self.autoencoder.latent_grid

    @staticmethod
    def load_bases(
        config: MaskGiTControlNetLightningConfig, opened: Opened | None = None
    ) -> TokenControlBases:
        """Load ``inputs.transformer`` and its autoencoder."""
        path = named_input(config, "transformer", what="transformer", example="stage2")
        base = CheckpointManager.load_transformer(opened or path)
        return TokenControlBases(base, CheckpointManager.load_upstream(base, path=config.inputs.autoencoder))

    @classmethod
    def data_module(
        cls, config: MaskGiTControlNetLightningConfig, bases: TokenControlBases, encoding: Encoding
    ) -> AbstractDataModule:
        """Return the base's own samples, with segmentations."""
        inner = token_data_module(bases.base_config(config), bases.autoencoder, encoding)
        return ControlNetDataModule(
            config, inner=inner, base_split=Split.from_dict(bases.base.header["split"])
        )

    def target(self, batch: ControlTokenBatch) -> Tensor:
        """Return the tokens."""
        return batch["target_indices"]

    def condition(self, batch: ControlTokenBatch) -> Condition:
        """Return the condition of the decoder, by its kind."""
        return self._condition_of(batch)

    def control(self, batch: ControlTokenBatch) -> ControlCondition:
        """Return segmentation, label, or both."""
        wanted = self.config.condition
        return ControlCondition(
            seg=batch["seg"] if wanted.takes_seg else None,
            label=batch["label"] if wanted.takes_label else None,
            dropped=computed(torch.logical_not, batch["has_seg"]) if wanted.takes_seg else None,
        )

    def decode(self, stored: Tensor) -> np.ndarray:
        """Return the volume of tokens."""
        return self.autoencoder.decode_tokens(stored)


class FlowControlRecipe(AbstractControlRecipe[MaisiControlNetConfig, FlowControlBases, ControlLatentBatch]):
    """Stage ``maisi_controlnet``: a segmentation, images or a label that steer a trained flow.

    The control network starts from the weights of the base; what was copied and what is fresh is logged.
    """

    base_name = "diffusion"
    stored = "latent"
    convolutional = True
    base: DiffusionModelRF
    config: MaisiControlNetConfig

    def __init__(self, config: MaisiControlNetConfig, bases: FlowControlBases | None = None) -> None:
        super().__init__(config, bases)
        sections, flow = self.bases.base.header["architecture"], self.bases.base_config.flow
        self.controlnet = ModelFactory.create_controlnet(
            config.model,
            config.condition,
            base_model=RectifiedFlowModelConfig.model_validate(sections["diffusion"]),
            autoencoder=KLModelConfig.model_validate(sections["autoencoder"]),
        )
        self.initialisation = self.controlnet.start_from(self.base, geometry=self.bases.geometry)
        # Gradients pass through the base too, which would keep more for them than its copy does.
        self.base.use_checkpointing = config.model.use_checkpointing
        contrast, max_steps = config.loss.contrast, config.training.max_steps
        family = FlowControl(
            base=self.base,
            controlnet=self.controlnet,
            scheduler=ModelFactory.create_flow_scheduler(flow),
            contrast=None
            if contrast is None
            else RegionContrast(
                switch_step=round(contrast.switch_fraction * max_steps), **contrast.kwargs("switch_fraction")
            ),
            start_noise=0.0 if config.start is None else config.start.noise,
            **config.loss.kwargs("contrast", *_WEIGHTS),
        )
        self.algorithm = ControlNetTrainer(family=family, **_weights(config.loss))
        self.sampler = ModelFactory.create_flow_sampler(config.sampler, flow)
        self.steered, self.steering = self.base.predict, self.controlnet.residuals
        self.sample_shape = (self.base.latent_channels, *self.autoencoder.latent_grid)
        self.scale_factor = self.bases.scale_factor

    @staticmethod
    def load_bases(config: MaisiControlNetConfig, opened: Opened | None = None) -> FlowControlBases:
        """Load ``inputs.diffusion`` and its autoencoder."""
        path = named_input(config, "diffusion", what="diffusion network", example="maisi_diffusion")
        base = CheckpointManager.load_diffusion(opened or path)
        require_flow(base.header, base.path)
        return FlowControlBases(base, CheckpointManager.load_vae(base, path=config.inputs.autoencoder))

    @classmethod
    def data_module(
        cls, config: MaisiControlNetConfig, bases: FlowControlBases, encoding: Encoding
    ) -> AbstractDataModule:
        """Return latents with segmentations."""
        sources, averages = config.condition.source_modalities, config.start is not None
        inner = latent_data_module(config, bases.autoencoder, encoding, sources, averages=averages)
        return ControlNetDataModule(
            config, inner=inner, base_split=Split.from_dict(bases.base.header["split"])
        )

    def header_data(self) -> dict[str, Any]:
        """Return the scale of the latents."""
        return {"scale_factor": self.bases.scale_factor}

    def start_note(self) -> str | None:
        """Return what was copied and what is fresh."""
        return f"Control network: {self.initialisation}."

    def target(self, batch: ControlLatentBatch) -> Tensor:
        """Return the latents in the scale of the base."""
        return batch["latent"] * self.bases.scale_factor

    def condition(self, batch: ControlLatentBatch) -> FlowCondition:
        """Return the class labels and the spacing of the batch."""
        return flow_condition(batch)

    def control(self, batch: ControlLatentBatch) -> ControlCondition:
        """Return any of segmentation, source images and label."""
        wanted = self.config.condition
        return ControlCondition(
            seg=batch["seg"] if wanted.takes_seg else None,
            label=batch["label"] if "label" in wanted.conditions else None,
            dropped=computed(torch.logical_not, batch["has_seg"]) if wanted.takes_seg else None,
            images=batch.get("images") if "image" in wanted.conditions else None,
            origin=self._origin(batch),
        )

    def _origin(self, batch: ControlLatentBatch) -> Tensor | None:
        """Return where the flow starts, in the scale of the base; None for noise."""
        found = batch.get("source_latent")
        return None if self.config.start is None or found is None else found * self.bases.scale_factor

    def start_of(self, control: ControlCondition) -> dict[str, Any]:
        """Return the sampler's start as a keyword, where the flow starts at the sources."""
        if self.config.start is None or control.origin is None or bool(control.is_dropped.any()):
            return {}
        return {"start": SourceStart(control.origin, self.config.start.noise)}

    def decode(self, stored: Tensor) -> np.ndarray:
        """Return the volume of a latent."""
        return self.autoencoder.decode(stored)


def _weights(loss: ControlNetLossConfig | FlowControlLossConfig) -> dict[str, Any]:
    return {name: getattr(loss, name) for name in _WEIGHTS}
