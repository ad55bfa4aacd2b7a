"""ControlNetLightning: stage 3 of MAISI, a segmentation, images or a label that steer a trained flow."""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.load import config_from_dict
from prod9.config.schema import (
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    RectifiedFlowModelConfig,
)
from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Header, Loaded, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_flow_controlnet_trainer
from prod9.training.lightning.base import Batch, Unregistered, compile_network
from prod9.training.lightning.control_samples import SampledControl

log = logging.getLogger("prod9")


@dataclass(frozen=True)
class FlowUpstream:
    """What stage 3 builds on: the flow's U-Net and the autoencoder in whose latent it moves."""

    base: Loaded[DiffusionModelRF]
    autoencoder: Loaded[AutoencoderKlMaisi]

    @property
    def scale_factor(self) -> float:
        """What latents are multiplied by: as the base was trained."""
        return float(self.base.header["data"]["scale_factor"])

    @cached_property
    def base_config(self) -> MaisiDiffusionConfig:
        """The config that the base was trained with."""
        built = config_from_dict(self.base.header["config"], source=str(self.base.path))
        assert isinstance(built, MaisiDiffusionConfig)  # load_diffusion checked the stage
        return built

    @property
    def geometry(self) -> FlowCondition:
        """What the base was told of the training grid: a batch of one."""
        affine = np.asarray(self.base.header["data"]["reference_affine"])
        spacing = torch.tensor(np.linalg.norm(affine[:3, :3], axis=0), dtype=torch.float32)
        return FlowCondition.of_heads(torch.zeros(1, dtype=torch.int64), spacing[None])


class ControlNetLightning(SampledControl):
    """Final adapter of ``stage: maisi_controlnet``.

    The base stays out of the module tree, as the autoencoder does: frozen, neither stored nor averaged. The control
    network starts from its weights; what was copied and what is fresh is logged.
    """

    config: MaisiControlNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # set once
    controlnet: ControlNetRF

    def __init__(self, config: MaisiControlNetConfig, upstream: FlowUpstream | None = None) -> None:
        upstream = upstream or load_flow_upstream(config)
        super().__init__(config, upstream.autoencoder)
        self._flow = Unregistered(upstream)
        base = upstream.base.network.requires_grad_(False).eval()
        sections = upstream.base.header["architecture"]
        self.controlnet = ModelFactory.create_controlnet(
            config.model,
            config.condition,
            base_model=RectifiedFlowModelConfig.model_validate(sections["diffusion"]),
            autoencoder=KLModelConfig.model_validate(sections["autoencoder"]),
        )
        self.initialisation = self.controlnet.start_from(base, geometry=upstream.geometry)
        flow = upstream.base_config.flow
        self._algorithm = Unregistered(
            build_flow_controlnet_trainer(
                config.loss,
                base=base,
                controlnet=self.controlnet,
                scheduler=ModelFactory.create_flow_scheduler(flow),
                max_steps=config.training.max_steps,
            )
        )
        self.sampler = ModelFactory.create_flow_sampler(config.sampler, flow)
        self._samples = []
        if config.training.channels_last:
            self.controlnet.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        if config.training.compile:
            compile_network(self.controlnet)

    @property
    def base(self) -> DiffusionModelRF:
        """The frozen U-Net."""
        return self._flow.content.base.network

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where base and autoencoder are, and their hashes."""
        return {"diffusion": self.describe(self._flow.content.base), **super().inputs()}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the control network: its sections, and those of what it was copied from."""
        earlier = self._flow.content.base.header["architecture"]
        return {
            "controlnet": self.config.model.model_dump(mode="json"),
            "condition": self.config.condition.model_dump(mode="json"),
            "diffusion": earlier["diffusion"],
            "autoencoder": earlier["autoencoder"],
        }

    def header(self) -> Header:
        """Return the header of this moment, with the scale of the latents."""
        header = super().header()
        header["data"]["scale_factor"] = self._flow.content.scale_factor
        return header

    def on_train_start(self) -> None:
        """Say what the control network of a new run started from."""
        super().on_train_start()
        if self.fresh and self.trainer.is_global_zero:
            log.info("Control network: %s.", self.initialisation)

    # -- training and validation ----------------------------------------------------------------------

    def condition(self, batch: Batch) -> FlowCondition:
        """Return the class labels and the spacing of the batch: what the base is told."""
        return FlowCondition.of_heads(batch["label"], batch["spacing"])

    def control(self, batch: Batch) -> ControlCondition:
        """Return what the control network is told about a batch; nothing where a segmentation is missing."""
        wanted = self.config.condition
        return ControlCondition(
            seg=batch["seg"] if wanted.takes_seg else None,
            label=batch["label"] if "label" in wanted.conditions else None,
            dropped=~batch["has_seg"] if wanted.takes_seg else None,
            images=batch["images"] if "image" in wanted.conditions else None,
        )

    def _scaled(self, batch: Batch) -> Tensor:
        return batch["latent"] * self._flow.content.scale_factor

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the control network on corrupted latents."""
        losses = self.algorithm.compute_losses(
            self._scaled(batch),
            self.condition(batch),
            self.control(batch),
            generator=generator,
            foreground=batch["foreground"],
            step=self.step,
        )
        return self.step_on(losses)

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what adds to the velocity losses, with control and without; sample for the first held-out lesions."""
        self.sample_for(batch, batch_idx)
        return self.algorithm.tally(
            self._scaled(batch),
            self.condition(batch),
            self.control(batch),
            generator=self.seeded_generator(batch_idx, 2),
            foreground=batch["foreground"],
        )

    # -- sampling -----------------------------------------------------------------------------------

    def draw(self, one: Batch, batch_idx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return volumes of one sample: decoded, sampled with control, and without."""
        condition = self.condition(one)
        shape = (1, self.base.latent_channels, *self.latent_grid)
        controlled = self.sampler.sample_with_controlnet(
            self.base.predict,
            shape,
            condition,
            [self.seeded_generator(batch_idx, 3)],
            controlnet=self.controlnet.residuals,
            control=self.controlnet.encode(self.control(one)),
            **self.config.control.kwargs(),
        )
        base = self.sampler.sample(self.base.predict, shape, condition, [self.seeded_generator(batch_idx, 3)])
        scale = self._flow.content.scale_factor
        return self._decode(one["latent"]), self._decode(controlled / scale), self._decode(base / scale)

    def decode_item(self, item: Batch) -> np.ndarray:
        """Return the volume of an item's latent."""
        return self._decode(item["latent"][None].to(self.device))

    def _decode(self, latent: Tensor) -> np.ndarray:
        return self.wrapper.decode(latent)[0, 0].float().clamp(0, 1).cpu().numpy()


def load_flow_upstream(config: MaisiControlNetConfig, opened: Opened | None = None) -> FlowUpstream:
    """Load ``inputs.diffusion`` and its autoencoder; raises ConfigError when the key is not set."""
    if config.inputs.diffusion is None:
        raise ConfigError(
            "inputs.diffusion: expected the run folder or checkpoint of a trained diffusion network, got null; "
            "set it, for example with --set inputs.diffusion=outputs/maisi_diffusion."
        )
    base = CheckpointManager.load_diffusion(opened or config.inputs.diffusion)
    return FlowUpstream(base, CheckpointManager.load_vae(base, path=config.inputs.autoencoder))
