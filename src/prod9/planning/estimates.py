"""Estimates, before anything starts, what a run will need: tokens, parameters, peak memory, disk.

Activations are counted from the configuration alone, without torch; parameters are counted by the caller, who can
build the networks. The rules, with bytes per value b = 4 (float32 on CPU) or 2 (bf16 autocast on CUDA):

- tokens: (H/f)(W/f)(D/f) for a grid of H × W × D voxels, f = space_to_depth · 2^(resolutions − 1).
- state of training: 16 bytes per parameter (weight, gradient and AdamW's two moments in float32), 14 with Muon, which
  keeps one moment of hidden matrices; 4 more with an average of the weights. With `trainer.strategy: fsdp` each
  device keeps its share of that, and the weights and gradients of one block. The frozen base of a control network, the
  teacher of a distilled flow, and the autoencoder below a stage 2 or 3 add 4 bytes per parameter.
- activations, stage 1: a normalised convolution keeps its input before and after the norm and after the
  activation, 4 + 4 + b bytes per value (norms run in float32 under autocast; 4 + b on a CPU, whose own kernels
  compute the value between norm and activation again), a bare one its input, b bytes.
  A pointwise convolution beside a block shares the block's input. Training passes are one crop batch or one whole
  volume, whichever is larger. Beside the autoencoder's, the discriminator keeps one pass, that of the reconstruction,
  4 + 4 + b bytes per value; its own two come when the autoencoder's are gone.
- activations, transformer, per position and block of width E and MLP ratio m: two norms and modulations
  (4 · 4E), queries, keys and values before and after their norm (6bE), attention's output (2bE), two gated
  residuals (4bE) and the MLP's hidden values before and after its activation (2bmE), one byte per value for
  each of the two dropout masks; attention itself keeps no L × L matrix. The head's logits and their softmax
  are float32. The positions of the longest context count as well, without logits. With ``use_checkpointing``
  one block's activations remain, and 4E per block; in an autoencoder the inputs of all blocks up to the one that is
  recomputed, and its activations, in a flow the outputs of all blocks and the activations of the largest level.
- activations, control: for a transformer those of the copied blocks, and of the frozen base what gradients with respect
  to its values need, E · (8 + b(6 + m)) per position and block; for a flow those of training the base, twice with
  region contrast, and with recomputation the skips once more, which it starts from. The condition's encoder keeps four
  values per channel and stage.
- gradients: beside all activations, those of the widest layer's input and output, in float32; in an autoencoder, beside
  the activations up to a block, those of its own widest layer.
- the sum of state, activations and gradients is multiplied by 1.25 for workspaces and fragmentation.
- token store: 2 or 4 bytes per token, 1 for its foreground flag and 2 for each of its latent channels; twice with
  mirrored copies.
- checkpoint: 12 bytes per parameter (weight and both moments), 10 with Muon, 4 more with an average.

Attention levels of an autoencoder and networks of perceptual terms are not counted. Tests compare activations with
those of real networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from prod9.config.schema import (
    FSQModelConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.planning.autoencoder import autoencoder_footprint, autoencoder_parameters
from prod9.planning.control import control_flow_footprint, control_maskgit_footprint
from prod9.planning.detail import detail_footprint
from prod9.planning.flow import flow_footprint
from prod9.planning.footprint import GIB, Device, Footprint, widths_of
from prod9.planning.refiner import refiner_footprint
from prod9.planning.transformer import transformer_footprint

OVERHEAD = 1.25
_WEIGHT_BYTES = 4
_GRADIENT_BYTES = 4
_MOMENT_BYTES = 4
_MUON_MOMENTS = 1.5
"""Moments per parameter: one of hidden matrices, two of the rest, such as modulations, a third of a transformer."""

Autoencoder = FSQModelConfig | KLModelConfig
Base = TransformerConfig | MaisiDiffusionConfig
CountParameters = Callable[[RunConfig, Base | None, Autoencoder | None], int]
"""Counts the parameters that a configuration trains, given its stage 2 (for stage 3 alone) and its autoencoder."""

_ENCODING = ("transformer", "maisi_diffusion", "maskgit_controlnet", "maisi_controlnet")
"""Stages that keep the autoencoder below them on the device, for validation."""

_FOOTPRINTS: Mapping[str, Callable[..., Footprint]] = {
    "autoencoder": autoencoder_footprint,
    "maisi_vae": autoencoder_footprint,
    "transformer": transformer_footprint,
    "maisi_diffusion": flow_footprint,
    "refiner": refiner_footprint,
    "detail": detail_footprint,
    "translation_detail": detail_footprint,
    "maisi_detail": detail_footprint,
    "maskgit_controlnet": control_maskgit_footprint,
    "maisi_controlnet": control_flow_footprint,
}
"""By stage. Called with the configuration, the bytes of a value, and what the stage builds on."""


@dataclass(frozen=True, kw_only=True)
class Resources(Footprint):
    """All that a run needs.

    Attributes:
        grid: voxels of a whole volume.
        parameters: of every trained network.
        memory_bytes: peak of a training step on one device.
        checkpoint_bytes: size of one checkpoint file.
    """

    grid: tuple[int, int, int]
    parameters: int
    memory_bytes: int
    checkpoint_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens of a whole volume; 0 for what works on volumes."""
        return prod(self.latent_grid)

    @property
    def memory_gib(self) -> float:
        """Peak memory of a training step in GiB."""
        return self.memory_bytes / GIB


def estimate(
    config: RunConfig,
    *,
    count: CountParameters,
    base: Base | None = None,
    autoencoder: Autoencoder | None = None,
    device: Device = "cuda",
) -> Resources:
    """Estimate what training ``config`` needs.

    Args:
        config: of any stage.
        count: counts the parameters of a configuration.
        base: the stage 2 that a stage 3 steers; None for other stages.
        autoencoder: the stage-1 model below a stage 2 or 3; None for other stages.
        device: where it trains.
    """
    below = [section for section in (autoencoder, base) if section is not None]
    footprint = _FOOTPRINTS[config.stage](config, widths_of(config, device), *below)
    parameters = count(config, base, autoencoder)
    frozen = 0 if base is None else count(base, None, autoencoder)
    if getattr(config, "distillation", None) is not None:
        frozen += parameters  # the teacher has the student's size
    if autoencoder is not None and config.stage in _ENCODING:
        frozen += autoencoder_parameters(autoencoder)
    average = 0 if config.training.ema is None else _WEIGHT_BYTES
    kept = _WEIGHT_BYTES + average + _MOMENT_BYTES * (2 if config.training.muon is None else _MUON_MOMENTS)
    state = parameters * (kept + _GRADIENT_BYTES) / num_shards(config)
    if num_shards(config) > 1:
        state += parameters * (_WEIGHT_BYTES + _GRADIENT_BYTES) / _num_blocks(config)
    state += frozen * _WEIGHT_BYTES
    return Resources(
        **vars(footprint),
        grid=config.data.grid,
        parameters=parameters,
        memory_bytes=int(OVERHEAD * (state + footprint.kept_bytes + footprint.passing_bytes)),
        checkpoint_bytes=int(parameters * kept),
    )


def num_shards(config: RunConfig) -> int:
    """Return on how many devices the state of training is divided; ``devices: auto`` counts as one."""
    trainer = config.trainer
    if trainer.strategy != "fsdp" or trainer.devices == "auto":
        return 1
    devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
    return devices * trainer.num_nodes


def _num_blocks(config: RunConfig) -> int:
    """Return how many blocks, about equal in weights, are gathered one by one; the widest level of a U-Net has most."""
    return getattr(config.model, "num_blocks", 2)
