"""What a training step costs on this machine: a few steps of the real networks at their real size, on made-up batches.

Networks have random weights and nothing is read or written, so that a run can be measured before its data are prepared
and before the stage below it is trained. Loading is not part of it: batches are made once.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from prod9.config.schema import (
    AutoencoderConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.diffusion.condition import FlowCondition
from prod9.models.factory import ModelFactory
from prod9.planning.footprint import latent_grid
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.optimizers import build_optimizer
from prod9.training.recipes.autoencoders import AbstractGANRecipe
from prod9.training.recipes.conditions import CONDITIONS
from prod9.training.recipes.table import recipe_of

FEWEST, MOST = 2, 10
"""Steps that are measured after the first one, which prepares kernels."""
_LATE = 10**9
"""A step at which every loss has begun."""

Step = Callable[[torch.Generator], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A step as it was measured.

    Attributes:
        seconds: of a step, the median.
        steps: how many were measured.
        memory_bytes: the most that a GPU held; None on a CPU, whose process holds other things too.
        device: where.
    """

    seconds: float
    steps: int
    memory_bytes: int | None
    device: str


def can_measure(config: RunConfig) -> bool:
    """Return whether steps of this stage can be made without what it builds on."""
    distilled = config.stage == "maisi_diffusion" and config.distillation is not None
    return config.stage in _STEPS and not distilled


def measure_steps(
    config: RunConfig,
    autoencoder: FSQModelConfig | KLModelConfig | None,
    *,
    device: torch.device,
    budget_s: float,
) -> Measured:
    """Train random networks for a few steps, as long as ``budget_s`` allows and at least :data:`FEWEST` steps.

    Args:
        config: of a run for which :func:`can_measure` holds.
        autoencoder: the model below a stage 2.
        device: where to compute.
        budget_s: seconds after which no further step begins.
    """
    began = time.monotonic()
    with torch.random.fork_rng(
        devices=[]
    ):  # first weights are drawn, and training must begin as without this
        step = _STEPS[config.stage](config, autoencoder, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator, took = torch.Generator(device).manual_seed(config.seed), list[float]()
    while len(took) <= FEWEST or (len(took) <= MOST and time.monotonic() - began < budget_s):
        start = time.perf_counter()
        step(generator)
        if device.type != "cpu":
            torch.cuda.synchronize(device) if device.type == "cuda" else torch.mps.synchronize()
        took.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measured(seconds=median(took[1:]), steps=len(took) - 1, memory_bytes=memory, device=str(device))


def _stage1(config: AutoencoderConfig | MaisiVAEConfig, below: Any, device: torch.device) -> Step:
    """Return a step of autoencoder and discriminator on one batch of crops."""
    del below
    recipe = cast(AbstractGANRecipe, recipe_of(config)(config))
    networks = [network.to(device).train() for network in recipe.networks().values()]
    if config.training.channels_last:
        networks = [network.to(memory_format=torch.channels_last_3d) for network in networks]
    rates = recipe.peak_rates()
    optimizers = [
        build_optimizer(network, config.training, rate=rate, main=place == 0)
        for place, (network, rate) in enumerate(zip(networks, rates, strict=True))
    ]
    image = torch.rand(config.data.batch_size, 1, *(config.data.crop_size or config.data.grid), device=device)
    x = recipe.volumes({"image": image, "label": _labels(config, device), "case_id": [], "modality": []})
    recipe.place(device)

    def step(generator: torch.Generator) -> None:
        with _precision(config, device):
            losses, output = recipe.reconstruct(x, step=_LATE, generator=generator)
            losses["total"].backward()
            optimizers[0].step()
            if len(optimizers) > 1:
                optimizers[1].zero_grad(set_to_none=True)
                recipe.algorithm.update_discriminator(
                    x, output.reconstruction, optimizers[1], step=_LATE, backward=torch.Tensor.backward
                )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)

    return step


def _transformer(config: TransformerConfig, below: FSQModelConfig, device: torch.device) -> Step:
    """Return a step of a decoder of tokens with the longest context."""
    decoder = ModelFactory.create_transformer(config.model, levels=below.levels).to(device).train()
    algorithm = TransformerTrainer(
        decoder=decoder, scheduler=ModelFactory.create_scheduler(config.masking), **config.loss.kwargs()
    )
    batch, grid = config.data.batch_size, latent_grid(config.data.grid, below.downsampling_factor)
    tokens = torch.randint(prod(below.levels), (batch, *grid), device=device)
    label, latent = _labels(config, device), (batch, len(below.levels), *grid)
    given: dict[str, Any] = {"label": label, "source_label": label}
    given["source_latent"] = torch.rand(latent, device=device)
    if config.model.kind == "single_stream":
        slots = config.in_context.slots(config.data.images_per_case)
        given["source_labels"] = label[:, None].expand(-1, slots).contiguous()
        given["source_latents"] = torch.rand(batch, slots, *latent[1:], device=device)
        given["co_registered"] = torch.ones(batch, slots, dtype=torch.bool, device=device)
    condition = CONDITIONS[config.model.kind](given)
    foreground = torch.ones(batch, *grid, dtype=torch.bool, device=device)
    return _plain(
        config,
        decoder,
        device,
        lambda generator: algorithm.compute_losses(
            tokens, condition, generator=generator, foreground=foreground
        ),
    )


def _flow(config: MaisiDiffusionConfig, below: KLModelConfig, device: torch.device) -> Step:
    """Return a step of a rectified flow."""
    network = ModelFactory.create_diffusion(config.model, latent_channels=below.latent_channels)
    network = network.to(device).train()
    algorithm = DiffusionTrainer(
        network=network, scheduler=ModelFactory.create_flow_scheduler(config.flow), **config.loss.kwargs()
    )
    batch, grid = config.data.batch_size, latent_grid(config.data.grid, below.downsampling_factor)
    latents = torch.randn(batch, below.latent_channels, *grid, device=device)
    condition = FlowCondition.of_heads(_labels(config, device), torch.ones(batch, 3, device=device))
    return _plain(
        config,
        network,
        device,
        lambda generator: algorithm.compute_losses(latents, condition, generator=generator),
    )


def _plain(
    config: RunConfig,
    network: nn.Module,
    device: torch.device,
    losses: Callable[[torch.Generator], Mapping[str, Tensor]],
) -> Step:
    """Return a step of one network and one optimizer."""
    optimizer = build_optimizer(network, config.training, rate=config.training.learning_rate, main=True)

    def step(generator: torch.Generator) -> None:
        with _precision(config, device):
            total = losses(generator)["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _labels(config: RunConfig, device: torch.device) -> Tensor:
    label = min(config.data.label_map.values())
    return torch.full((config.data.batch_size,), label, dtype=torch.int64, device=device)


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast that a run of ``config`` has on ``device``."""
    asked = config.trainer.precision
    if device.type == "cuda" and asked in ("auto", "bf16-mixed"):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


_STEPS: Mapping[str, Callable[..., Step]] = {
    "autoencoder": _stage1,
    "maisi_vae": _stage1,
    "transformer": _transformer,
    "maisi_diffusion": _flow,
}
"""By stage: what makes a step. Those of other stages need a trained base."""
