"""One small example of every network and every algorithm, on any device: what compiles, what waits, what agrees."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.discriminator import Discriminator
from prod9.controlnet.condition import ControlCondition
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.refiner import Refiner
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.transformer import TransformerDecoder
from prod9.host_copies import placed
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer
from prod9.training.algorithms.control_flow import FlowControl, RegionContrast
from prod9.training.algorithms.control_tokens import TokenControl
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer
from prod9.training.algorithms.refiner_trainer import RefinerInputs, RefinerTrainer
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.losses import VAEGANLoss

LEVELS = (8, 6, 5)
GRID, FACTOR, BATCH = (4, 4, 4), 4, 2
VOXELS = tuple(side * FACTOR for side in GRID)
STAGE1 = {"num_channels": (8, 16, 16), "num_res_blocks": (1, 1, 1), "norm_num_groups": 4}
UNET: dict[str, Any] = {
    "latent_channels": 3,
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "num_head_channels": (0, 8),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
}
DECODER = {"levels": LEVELS, "embed_dim": 24, "num_blocks": 4, "num_heads": 2}


@dataclass(frozen=True)
class Example:
    """A network and a call of it. call: returns the tensors of one forward pass."""

    network: nn.Module
    call: Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Inputs:
    """A batch of everything, the same on every device."""

    device: str
    batch: int = BATCH

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Return uniform numbers in [0, 1), drawn on the CPU."""
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    @property
    def volume(self) -> Tensor:
        return self.draw(self.batch, 1, *VOXELS)

    @property
    def latent(self) -> Tensor:
        return self.draw(self.batch, 3, *GRID, seed=1) * 4 - 2

    @property
    def tokens(self) -> Tensor:
        return (self.draw(self.batch, *GRID, seed=2) * 240).long()

    @property
    def mask(self) -> Tensor:
        return self.draw(self.batch, *GRID, seed=3) > 0.4

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.batch, device=self.device) % 4

    @property
    def seg(self) -> Tensor:
        return (self.draw(self.batch, *VOXELS, seed=4) * 4).to(torch.uint8)

    @property
    def control(self) -> ControlCondition:
        return ControlCondition(seg=self.seg, label=self.labels)

    @property
    def flow(self) -> FlowCondition:
        return FlowCondition.of_heads(self.labels, self.draw(self.batch, 3, seed=5))

    @property
    def label_condition(self) -> MaskGiTCondition:
        return MaskGiTCondition(label=self.labels)

    @property
    def in_context(self) -> InContextCondition:
        # One source for the first sample, two for the others.
        sources = placed(torch.tensor([[1, -1]] + [[2, 3]] * (self.batch - 1)), self.device)
        return InContextCondition(self.labels, sources, self.draw(self.batch, 2, 3, *GRID, seed=6))

    @property
    def refiner(self) -> tuple[Tensor, ...]:
        present = torch.tensor([[False, True, True, False]] * self.batch, device=self.device)
        sources = self.draw(self.batch, 4, *VOXELS, seed=7) - 0.3
        return self.volume, sources.clamp_min(0), present, self.labels * 0

    @property
    def head_voxels(self) -> Tensor:
        # As a data set counts them: no source is hidden here but the first and the last.
        sources = (self.draw(self.batch, 4, *VOXELS, seed=7) - 0.3)[:, 1:3]
        return placed((sources > 0).any(1).flatten(1).sum(1).cpu(), self.device)


def shaken(network: nn.Module, device: str, *, std: float = 0.1) -> Any:
    """Draw all weights anew, the same on every device: fresh networks answer 0 whatever they are told."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return network.to(device)


def _autoencoder(kind: str, device: str) -> Any:
    if kind == "fsq":
        network = AutoencoderFSQ(levels=LEVELS, **STAGE1)
    else:
        network = AutoencoderKlMaisi(latent_channels=3, **STAGE1)
    network = shaken(network, device)
    network.calibrate(Inputs(device).volume)
    return network


def _decoder(device: str) -> TransformerDecoder:
    return shaken(TransformerDecoder(**DECODER, dropout=0.0), device)


def _single_stream(device: str, attention: str) -> TransformerDecoderSingleStream:
    return shaken(TransformerDecoderSingleStream(**DECODER, dropout=0.0, attention=attention), device)


def _unet(device: str) -> DiffusionModelRF:
    return shaken(DiffusionModelRF(**UNET), device)


def _flow_controlnet(device: str) -> ControlNetRF:
    kinds = ("mask", "label")
    return shaken(ControlNetRF(**UNET, downsampling_factor=FACTOR, conditions=kinds, channels=(8,)), device)


def _token_controlnet(base: TransformerDecoder, device: str) -> ControlNetMaskGiT:
    network = ControlNetMaskGiT(base=base, downsampling_factor=FACTOR, num_labels=4, channels=(8, 16))
    return shaken(network, device)


def _refiner(device: str) -> Refiner:
    return shaken(Refiner(num_channels=(8, 16)), device)


def examples(device: str = "cpu", *, batch: int = BATCH) -> dict[str, Callable[[], Example]]:
    """Return, by name, what builds a network and a call of it."""
    given = Inputs(device, batch)

    def autoencoder(kind: str) -> Example:
        network = _autoencoder(kind, device)

        def call() -> tuple[Tensor, ...]:
            out = network(given.volume)
            return out.reconstruction, out.z_mu

        return Example(network, call)

    def unet() -> Example:
        network = _unet(device)
        times = torch.full((batch,), 500.0, device=device)
        return Example(network, lambda: (network.predict(given.latent, times, given.flow),))

    def flow_controlnet() -> Example:
        network = _flow_controlnet(device)
        times = torch.full((batch,), 500.0, device=device)

        def call() -> tuple[Tensor, ...]:
            out = network.residuals(given.latent, times, given.flow, network.encode(given.control))
            return *out.down, out.mid

        return Example(network, call)

    def decoder(network: Any, condition: Any) -> Example:
        rows = given.mask.flatten().nonzero()[:, 0]

        def call() -> tuple[Tensor, ...]:
            return (network(given.tokens, given.mask, network.prepare(condition), rows=rows).values,)

        return Example(network, call)

    def token_controlnet() -> Example:
        base = _decoder(device)
        network = _token_controlnet(base, device)
        rows = given.mask.flatten().nonzero()[:, 0]
        with torch.no_grad():
            prepared = base.prepare(given.label_condition)

        def call() -> tuple[Tensor, ...]:
            encoded = network.encode(given.control)
            out = network(given.tokens, given.mask, prepared, encoded, rows=rows)
            return *out.residuals, out.logits.values

        return Example(network, call)

    def refiner() -> Example:
        network = _refiner(device)
        return Example(network, lambda: tuple(network(*given.refiner, head_voxels=given.head_voxels)))

    return {
        "fsq": partial(autoencoder, "fsq"),
        "kl": partial(autoencoder, "kl"),
        "unet": unet,
        "flow_controlnet": flow_controlnet,
        "decoder": lambda: decoder(_decoder(device), given.label_condition),
        "single_stream": lambda: decoder(_single_stream(device, "prefix"), given.in_context),
        "single_stream_full": lambda: decoder(_single_stream(device, "full"), given.in_context),
        "token_controlnet": token_controlnet,
        "refiner": refiner,
    }


# -- algorithms -----------------------------------------------------------------------------------------


def _gan_loss(**changes: Any) -> VAEGANLoss:
    settings: dict[str, Any] = {
        "reconstruction": "l1", "reconstruction_weight": 1.0, "perceptual": None, "perceptual_weight": 0.0,
        "adversarial_weight": 0.1, "criterion": "hinge", "adaptive": True, "adaptive_max": 1e4, "start_step": 0,
        "gradient_penalty": 1.0,
    }  # fmt: skip
    return VAEGANLoss(**(settings | changes))


def _gan_step(kind: str, device: str) -> Callable[[], Any]:
    network = _autoencoder(kind, device)
    discriminator = shaken(Discriminator(channels=4, num_layers_d=1, in_channels=1, norm="group"), device)
    weights = {"fsq": {"range_weight": 0.1, "commitment_weight": 0.1}, "kl": {"kl_weight": 1e-3}}[kind]
    trainer = AutoencoderTrainer(autoencoder=network, discriminator=discriminator, loss=_gan_loss(**weights))
    optimizer = torch.optim.AdamW(discriminator.parameters())
    x = Inputs(device).volume

    def step() -> None:
        losses, output = trainer.compute_generator_losses(x, step=0)
        losses["total"].backward()
        trainer.update_discriminator(
            x, output.reconstruction, optimizer, step=0, backward=lambda loss: loss.backward()
        )

    return step


def training_steps(device: str = "cpu") -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return, by name, what builds one training step of an algorithm: losses and their backward pass."""
    given = Inputs(device, batch=4)
    head = given.draw(4, *GRID, seed=9) > 0.3

    def generator() -> torch.Generator:
        return torch.Generator(device).manual_seed(0)

    def transformer(network: Any, condition: Any) -> Callable[[], Any]:
        scheduler = MaskGiTScheduler(scheduler_type="arccos")
        trainer = TransformerTrainer(
            decoder=network, scheduler=scheduler, region_weight=5.0, ordinal_weight=0.1
        )
        g, tokens, seg = generator(), given.tokens, given.seg

        def step() -> None:
            losses = trainer.compute_losses(tokens, condition, generator=g, foreground=head, seg=seg)
            losses["total"].backward()

        return step

    def refiner() -> Callable[[], Any]:
        trainer = RefinerTrainer(refiner=_refiner(device), region_weight=3.0)
        inputs, target, g = RefinerInputs(*given.refiner, given.head_voxels), given.volume, generator()
        region = target > 0.9
        return lambda: trainer.compute_losses(inputs, target, generator=g, region=region)["total"].backward()

    def diffusion() -> Callable[[], Any]:
        trainer = DiffusionTrainer(network=_unet(device), scheduler=RectifiedFlowSchedulerRF())
        x, condition, g = given.latent, given.flow, generator()
        return lambda: trainer.compute_losses(x, condition, generator=g)["total"].backward()

    def control(family: str) -> Callable[[], Any]:
        made: TokenControl | FlowControl
        if family == "tokens":
            base: Any = _decoder(device).requires_grad_(False).eval()
            network: Any = _token_controlnet(base, device)
            made = TokenControl(decoder=base, controlnet=network, scheduler=MaskGiTScheduler())
            target, condition = given.tokens, given.label_condition
        else:
            base = _unet(device).requires_grad_(False).eval()
            made = FlowControl(
                base=base,
                controlnet=_flow_controlnet(device),
                scheduler=RectifiedFlowSchedulerRF(),
                contrast=RegionContrast(weight=0.1),
            )
            target, condition = given.latent, given.flow
        trainer = ControlNetTrainer(family=made, control_dropout=0.5)
        g, told = generator(), given.control

        def step() -> None:
            trainer.compute_losses(target, condition, told, generator=g, foreground=head)["total"].backward()

        return step

    return {
        "autoencoder": partial(_gan_step, "fsq", device),
        "maisi_vae": partial(_gan_step, "kl", device),
        "label_conditional": lambda: transformer(_decoder(device), given.label_condition),
        "in_context": lambda: transformer(_single_stream(device, "prefix"), given.in_context),
        "refiner": refiner,
        "maisi_diffusion": diffusion,
        "maskgit_controlnet": partial(control, "tokens"),
        "maisi_controlnet": partial(control, "flow"),
    }


SAMPLER_STEPS = 4


def sampling_runs(device: str = "cpu") -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """Return, by name, what builds one sampling run of ``SAMPLER_STEPS`` steps."""
    given = Inputs(device)
    shape = (BATCH, *GRID)

    def generators() -> list[torch.Generator]:
        return [torch.Generator(device).manual_seed(k) for k in range(BATCH)]

    def tokens(**how: Any) -> Callable[[], Tensor]:
        network = _decoder(device).eval()
        sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=SAMPLER_STEPS, guidance_scale=1.0, **how)
        g, condition = generators(), given.label_condition
        return lambda: sampler.sample(network, shape, condition, g)

    def controlled_tokens() -> Callable[[], Tensor]:
        network = _decoder(device).eval()
        controlnet = _token_controlnet(network, device).eval()
        sampler = MaskGiTSampler(scheduler=MaskGiTScheduler(), steps=SAMPLER_STEPS, order="halton")
        g, condition = generators(), given.label_condition
        with torch.no_grad():
            control = controlnet.encode(given.control)
        return lambda: sampler.sample_with_controlnet(
            network, shape, condition, g, controlnet=controlnet, control=control, control_guidance_scale=0.5
        )

    def flow() -> Callable[[], Tensor]:
        network = _unet(device).eval()
        sampler = RectifiedFlowSampler(
            scheduler=RectifiedFlowSchedulerRF(), steps=SAMPLER_STEPS, solver="heun", guidance_scale=1.0
        )
        g, condition = generators(), given.flow
        return lambda: sampler.sample(network.predict, (BATCH, 3, *GRID), condition, g)

    return {
        "halton": partial(tokens, order="halton"),
        "confidence": partial(tokens, order="confidence"),
        "remasking": partial(tokens, order="halton", remasking=0.3),
        "controlled_tokens": controlled_tokens,
        "flow": flow,
    }
