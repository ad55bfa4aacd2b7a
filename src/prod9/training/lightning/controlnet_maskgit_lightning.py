"""ControlNetLightningMaskGiT: stage 3, a segmentation or a label that steers a trained transformer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.load import config_from_dict, config_to_dict
from prod9.config.schema import (
    FSQModelConfig,
    MaskGiTControlNetLightningConfig,
    TransformerConfig,
)
from prod9.controlnet.condition import ControlCondition
from prod9.errors import ConfigError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_controlnet_trainer
from prod9.training.lightning.base import Batch, Unregistered, compile_network
from prod9.training.lightning.conditions import CONDITIONS
from prod9.training.lightning.control_samples import SampledControl
from prod9.training.lightning.tokens import AbstractTokenLightning


@dataclass(frozen=True)
class ControlUpstream:
    """What stage 3 builds on: the base decoder and the autoencoder whose tokens it speaks."""

    base: Loaded[AbstractTokenDecoder]
    autoencoder: Loaded[AutoencoderFSQ]

    def base_config(self, config: MaskGiTControlNetLightningConfig) -> TransformerConfig:
        """Return the base's config with the data, steps and folders of ``config``: what its samples are."""
        values = config_to_dict(config)
        names = ("output_dir", "seed", "data", "training", "trainer", "sliding_window")
        built = config_from_dict(
            self.base.header["config"],
            source=str(self.base.path),
            overrides=[(name, values[name]) for name in names],
        )
        assert isinstance(built, TransformerConfig)  # load_transformer checked the stage
        return built


class ControlNetLightningMaskGiT(SampledControl, AbstractTokenLightning):
    """Final adapter of ``stage: maskgit_controlnet``.

    The base stays out of the module tree, as the autoencoder does: frozen, neither stored nor averaged.
    """

    config: MaskGiTControlNetLightningConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # set once
    controlnet: ControlNetMaskGiT

    def __init__(
        self, config: MaskGiTControlNetLightningConfig, upstream: ControlUpstream | None = None
    ) -> None:
        upstream = upstream or load_control_upstream(config)
        super().__init__(config, upstream.autoencoder)
        base = upstream.base.network.requires_grad_(False).eval()
        self._base = Unregistered(upstream.base)
        sections = upstream.base.header["architecture"]
        self._condition_of = CONDITIONS[sections["transformer"]["kind"]]
        self.controlnet = ModelFactory.create_controlnet(
            config.model,
            config.condition,
            base=base,
            base_model=upstream.base_config(config).model,
            autoencoder=FSQModelConfig.model_validate(sections["autoencoder"]),
        )
        self._algorithm = Unregistered(
            build_controlnet_trainer(
                config.loss,
                decoder=base,
                controlnet=self.controlnet,
                scheduler=ModelFactory.create_scheduler(config.masking),
            )
        )
        self._samples = []
        if config.training.compile:
            compile_network(self.controlnet)

    @property
    def base(self) -> AbstractTokenDecoder:
        """The frozen decoder."""
        return self._base.content.network

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where base and autoencoder are, and their hashes."""
        return {"transformer": self.describe(self._base.content), **super().inputs()}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the control network: its sections, and those of what it was copied from."""
        earlier = self._base.content.header["architecture"]
        return {
            "controlnet": self.config.model.model_dump(mode="json"),
            "condition": self.config.condition.model_dump(mode="json"),
            "transformer": earlier["transformer"],
            "autoencoder": earlier["autoencoder"],
        }

    def control(self, batch: Batch) -> ControlCondition:
        """Return what the control network is told about a batch; nothing where a segmentation is missing."""
        wanted = self.config.condition
        return ControlCondition(
            seg=batch["seg"] if wanted.takes_seg else None,
            label=batch["label"] if wanted.takes_label else None,
            dropped=~batch["has_seg"] if wanted.takes_seg else None,
        )

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the control network on hidden tokens."""
        losses = self.algorithm.compute_losses(
            batch["target_indices"],
            self._condition_of(batch),
            self.control(batch),
            generator=generator,
            foreground=batch["foreground"],
        )
        return self.step_on(losses)

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what adds to the token metrics; sample for the first held-out lesions."""
        self.sample_for(batch, batch_idx)
        return self.algorithm.tally(
            batch["target_indices"],
            self._condition_of(batch),
            self.control(batch),
            generator=self.seeded_generator(batch_idx, 2),
            foreground=batch["foreground"],
        )

    # -- sampling -----------------------------------------------------------------------------------

    def draw(self, one: Batch, batch_idx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return volumes of one sample: decoded, sampled with control, and without."""
        condition, shape = self._condition_of(one), (1, *self.token_grid)
        controlled = self.sampler.sample_with_controlnet(
            self.base,
            shape,
            condition,
            [self.seeded_generator(batch_idx, 3)],
            controlnet=self.controlnet,
            control=self.controlnet.encode(self.control(one)),
            **self.config.control.kwargs(),
        )
        base = self.sampler.sample(self.base, shape, condition, [self.seeded_generator(batch_idx, 3)])
        return self.decode(one["target_indices"]), self.decode(controlled), self.decode(base)

    def decode_item(self, item: Batch) -> np.ndarray:
        """Return the volume of an item's tokens."""
        return self.decode(item["target_indices"][None].to(self.device))


def load_control_upstream(
    config: MaskGiTControlNetLightningConfig, opened: Opened | None = None
) -> ControlUpstream:
    """Load ``inputs.transformer`` and its autoencoder; raises ConfigError when the key is not set."""
    if config.inputs.transformer is None:
        raise ConfigError(
            "inputs.transformer: expected the run folder or checkpoint of a trained transformer, got null; "
            "set it, for example with --set inputs.transformer=outputs/stage2."
        )
    base = CheckpointManager.load_transformer(opened or config.inputs.transformer)
    return ControlUpstream(base, CheckpointManager.load_upstream(base, path=config.inputs.autoencoder))
