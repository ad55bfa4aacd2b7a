"""Settings, tokens and conditions that cannot mean anything were computed with, and gave volumes without a word."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
from prod9.detail.flow import DetailFlow
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.errors import ConfigError
from prod9.generator.branches import Control
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.heads import TokenLogits, TokenVocabulary
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder
from prod9.pipelines.inpainting import InpaintingPipeline

TOKENS = {"scheduler": MaskGiTScheduler(), "steps": 2}
FLOW = {"scheduler": RectifiedFlowSchedulerRF(), "steps": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((lambda **v: MaskGiTSampler(**TOKENS, **v), n) for n in ("temperature", "guidance_scale")),
        *(
            (lambda **v: MaskGiTSampler(**TOKENS, **v), n)
            for n in ("gumbel_temperature", "autoguidance_scale")
        ),
        *(
            (lambda **v: RectifiedFlowSampler(**FLOW, **v), n)
            for n in ("guidance_scale", "autoguidance_scale")
        ),
        *((RectifiedFlowSchedulerRF, n) for n in ("logit_mean", "logit_std", "transform_scale")),
        *((DetailFlow, n) for n in ("start_noise", "residual")),
        *((lambda **v: Control(Control, None, **v), n) for n in ("strength", "guidance_scale")),
    ],
)
def test_f04_nan_is_no_setting(build: Callable[..., Any], name: str, value: float) -> None:
    """No comparison with a bound finds NaN, and a volume of NaN was returned."""
    with pytest.raises(ValueError, match="expected finite numbers"):
        build(**{name: value})


def test_f04_nan_is_no_strength_of_control() -> None:
    sampler, condition = RectifiedFlowSampler(**FLOW), FlowCondition(torch.tensor([1]))
    with pytest.raises(ValueError, match="control_strength, control_guidance_scale: expected finite"):
        sampler.sample_with_controlnet(
            lambda x, time, condition, residuals: x,
            (1, 1, 2, 2, 2),
            condition,
            torch.Generator(),
            controlnet=lambda *given: pytest.fail("nothing is computed"),  # pyrefly: ignore[bad-argument-type]
            control=torch.zeros(1),
            control_strength=float("nan"),
        )


def test_f04_the_coldest_draws_are_the_mode() -> None:
    """Logits over 1e-40 are infinite: 4% of the tokens were the likeliest ones."""
    vocabulary = TokenVocabulary(levels=[8, 5], groups="balanced")
    generator = torch.Generator().manual_seed(0)
    logits = TokenLogits(torch.randn(200, vocabulary.num_logits, generator=generator), vocabulary)
    assert torch.equal(logits.sample(generator, temperature=1e-40), logits.mode())


def decoder() -> TransformerDecoder:
    return TransformerDecoder(levels=[8, 5], embed_dim=12, num_blocks=2, num_heads=2).eval()


@pytest.mark.parametrize("number", [-1, 40])
def test_f04_numbers_that_are_no_tokens(number: int) -> None:
    """Token 40 of 40 had the code of token 0."""
    with pytest.raises(ValueError, match=f"tokens: expected numbers from 0 to 39, got \\[{number}\\]"):
        FiniteScalarQuantizer([8, 5]).indices_to_codes(torch.full((1, 2, 2, 2), number))
    tokens, mask = torch.full((1, 2, 2, 2), number), torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    given = {"initial_tokens": tokens, "initial_mask": mask}
    sampler, condition = MaskGiTSampler(**TOKENS), MaskGiTCondition(torch.tensor([1]))
    with pytest.raises(ValueError, match="initial_tokens: expected numbers from 0 to 39"):
        sampler.sample(decoder(), (1, 2, 2, 2), condition, torch.Generator(), **given)
    given["initial_mask"] = ~mask  # what lies under the mask does not count
    assert sampler.sample(decoder(), (1, 2, 2, 2), condition, torch.Generator(), **given).max() < 40


@pytest.mark.parametrize("count", [1, 3])
def test_f04_as_many_conditions_as_samples(count: int) -> None:
    """Three conditions for two samples ended in an error of torch, or the third was ignored."""
    with pytest.raises(ValueError, match=rf"condition: expected one per sample \(2\), got {count}"):
        MaskGiTSampler(**TOKENS).sample(
            decoder(), (2, 2, 2, 2), MaskGiTCondition(torch.zeros(count).long()), torch.Generator()
        )


@pytest.mark.parametrize("count", [1, 3])
def test_f04_as_many_conditions_as_latents(count: int) -> None:
    """Three conditions for one latent gave three latents."""
    sampler = RectifiedFlowSampler(**FLOW)
    condition = FlowCondition(torch.zeros(count, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"condition: expected one per sample \(2\), got {count}"):
        sampler.sample(lambda x, time, condition: x, (2, 1, 2, 2, 2), condition, torch.Generator())


def test_f04_a_source_of_no_class() -> None:
    """The number after the last class was taken for: not known."""
    network = TransformerDecoder(
        levels=[8, 5], embed_dim=12, num_blocks=2, num_heads=2, num_classes=4, source_latent=True
    )
    condition = MaskGiTCondition(torch.tensor([1]), torch.zeros(1, 2, 2, 2, 2), torch.tensor([4]))
    with pytest.raises(ValueError, match="labels of sources: expected numbers from -1 to 3"):
        network.prepare(condition)


@pytest.mark.parametrize("blend", [float("inf"), float("nan"), 1e9])
def test_f04_a_border_is_no_wider_than_the_grid(blend: float) -> None:
    """``--blend inf`` ended in an OverflowError after sampling, 1e9 asked for 30 GiB."""

    class Generator:
        kind, grid = "label_conditional", (16, 24, 16)

    with pytest.raises(ConfigError, match="blend: expected 0 to 24"):
        InpaintingPipeline(generator=Generator(), blend=blend)  # pyrefly: ignore[bad-argument-type]
