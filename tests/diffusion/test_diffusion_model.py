"""The U-Net against MONAI's on the same weights, and what it refuses."""

import pytest
import torch
from jaxtyping import TypeCheckError
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import ControlResiduals, DiffusionModelRF

NETWORK = {
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "num_head_channels": (0, 8),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
}


def build(**changes):
    torch.manual_seed(0)
    network = DiffusionModelRF(**{"latent_channels": 3, **NETWORK, **changes})
    return randomise(network).eval()


def randomise(network):
    # The last convolutions start at zero, and a network of zeros equals anything.
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def build_monai(**changes):
    options = {"include_spacing_input": True, "resblock_updown": True, "include_fc": True}
    return DiffusionModelUNetMaisi(
        spatial_dims=3, in_channels=3, out_channels=3, **{**NETWORK, **options, **changes}
    ).eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 4, 6, 4, generator=generator)
    spacing = torch.rand(batch, 3, generator=generator) + 0.5
    region = torch.nn.functional.one_hot(torch.arange(batch) % 4, 4).float()
    condition = FlowCondition(torch.tensor([1, 4] * batch)[:batch], spacing, region, region.flip(0))
    return x, torch.rand(batch, generator=generator) * 1000, condition


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "resblock_updown": False,
            "include_fc": False,
            "num_class_embeds": None,
            "include_top_region_index_input": True,
            "include_bottom_region_index_input": True,
        },
    ],
    ids=["rflow", "ddpm"],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_it_equals_monais_on_the_same_weights(options, batch):
    ours, theirs = build(**options), build_monai(**options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, time, condition = inputs(batch)
    with torch.no_grad():
        expected = theirs(
            x,
            time,
            class_labels=condition.label if theirs.num_class_embeds else None,
            spacing_tensor=condition.spacing * 100,
            top_region_index_tensor=condition.top_region * 100,
            bottom_region_index_tensor=condition.bottom_region * 100,
        )
        result = ours.predict(x, time, condition)
        last = ours.predict(
            x.contiguous(memory_format=torch.channels_last_3d),
            time,
            condition,
        )
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def test_residuals_are_added_as_monai_adds_them_and_leave_no_trace():
    ours, theirs = build(), build_monai()
    theirs.load_state_dict(ours.state_dict())
    x, time, condition = inputs()
    half, quarter = (2, 8, 4, 6, 4), (2, 8, 2, 3, 2)
    shapes = [half, half, quarter, (2, 16, 2, 3, 2)]
    down = tuple(torch.full(shape, 0.3) for shape in shapes)
    mid = torch.full((2, 16, 2, 3, 2), -0.2)
    arguments = {"class_labels": condition.label, "spacing_tensor": condition.spacing * 100}
    with torch.no_grad():
        expected = theirs(
            x,
            time,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid.clone(),
            **arguments,
        )
    result = ours.predict(x, time, condition, ControlResiduals(down, mid))
    torch.testing.assert_close(result.detach(), expected, rtol=1e-4, atol=1e-5)
    result.square().sum().backward()  # MONAI's in-place additions would raise here
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_recomputed_activations_give_the_same_gradients():
    x, time, condition = inputs()
    gradients = []
    for flag in (False, True):
        network = build(use_checkpointing=flag).train()
        network.predict(x, time, condition).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_cannot_be_right_is_refused():
    network = build()
    x, time, condition = inputs()
    with pytest.raises(ValueError, match=r"multiples of 2, got \(4, 5, 4\); use \(4, 6, 4\)"):
        network.predict(x[:, :, :, :5], time, condition)
    with pytest.raises(ValueError, match=r"labels: expected numbers from 0 to 4, got \[9\]"):
        network.predict(x, time, FlowCondition(torch.tensor([9, 1]), condition.spacing))
    with pytest.raises(ValueError, match="spacing: expected in the condition"):
        network.predict(x, time, FlowCondition(condition.label))
    with pytest.raises(ValueError, match="class_labels: expected"):
        network(x, time)
    with pytest.raises(TypeCheckError):
        network.predict(x[0], time, condition)


def test_a_dropped_condition_keeps_the_geometry():
    _, _, condition = inputs()
    dropped = condition.drop(torch.tensor([True, False]))
    assert dropped.label.tolist() == [0, 4]
    assert dropped.spacing is condition.spacing
    both = condition.cat(condition.unconditional())
    assert both.label.tolist() == [1, 4, 0, 0]
    assert len(both) == 4
    with pytest.raises(ValueError, match="spacing, top_region, bottom_region: expected in both"):
        condition.cat(FlowCondition(condition.label))
