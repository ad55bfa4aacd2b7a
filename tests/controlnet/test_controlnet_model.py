"""ControlNetRF: published networks, the weights it starts from, what it is told, and what it must not change."""

import pytest
import torch
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi

from prod9.controlnet.condition import ControlCondition, bit_planes
from prod9.controlnet.controlnet_model import FRESH, ControlNetRF
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from tests.draws import seeded, shaken

UNET = {
    "latent_channels": 2,
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "num_head_channels": (0, 8),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
}
PUBLISHED = {
    "latent_channels": 4,
    "num_channels": (64, 128, 256, 512),
    "attention_levels": (False, False, True, True),
    "num_head_channels": (0, 0, 32, 32),
    "num_res_blocks": 2,
    "downsampling_factor": 4,
    "num_mask_classes": 256,
    "seg_planes": "bits",
    "encoder": "maisi",
    "channels": (8, 32, 64),
}
SHAPE = (2, 2, 4, 4, 4)


def make_base(**kwargs):
    base = DiffusionModelRF(**(UNET | kwargs)).eval().requires_grad_(False)
    return shaken(base, std=0.1)


def make_control(**kwargs):
    settings = {"downsampling_factor": 2, "channels": (4, 6), "num_mask_classes": 3}
    return ControlNetRF(**(UNET | settings | kwargs))


def condition(batch=2):
    return FlowCondition.of_heads(torch.ones(batch, dtype=torch.int64), torch.full((batch, 3), 3.75))


def segs(batch=2, classes=3):
    return torch.randint(classes, (batch, 8, 8, 8), generator=seeded(3)).to(torch.uint8)


@pytest.mark.parametrize(
    ("settings", "parameters", "tensors"),
    [
        ({"num_class_embeds": 128}, 72_037_072, 231),
        ({"resblock_updown": False, "include_fc": False}, 68_644_944, 196),
    ],
    ids=["rflow", "ddpm"],
)
def test_the_published_networks_have_the_published_size_and_names(settings, parameters, tensors):
    with torch.device("meta"):
        ours = ControlNetRF(**(PUBLISHED | settings))
        theirs = ControlNetMaisi(
            spatial_dims=3,
            in_channels=4,
            num_channels=PUBLISHED["num_channels"],
            attention_levels=PUBLISHED["attention_levels"],
            num_head_channels=PUBLISHED["num_head_channels"],
            num_res_blocks=2,
            num_class_embeds=settings.get("num_class_embeds"),
            resblock_updown=settings.get("resblock_updown", True),
            include_fc=settings.get("include_fc", True),
            conditioning_embedding_in_channels=8,
            conditioning_embedding_num_channels=(8, 32, 64),
        )
    assert sum(p.numel() for p in ours.parameters()) == parameters
    assert len(ours.state_dict()) == tensors
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}


def test_the_same_weights_give_monais_numbers_and_the_cache_does_not_change_them():
    ours = make_control(encoder="maisi", channels=(4, 6), seg_planes="bits", num_mask_classes=256).eval()
    theirs = ControlNetMaisi(
        spatial_dims=3, in_channels=2, num_channels=(8, 16), attention_levels=(False, True),
        num_head_channels=(0, 8), num_res_blocks=1, norm_num_groups=4, num_class_embeds=5, resblock_updown=True,
        include_fc=True, conditioning_embedding_in_channels=8, conditioning_embedding_num_channels=(4, 6),
    ).eval()  # fmt: skip
    theirs.load_state_dict(shaken(ours, std=0.1).state_dict())
    x, t, seg = torch.randn(SHAPE, generator=seeded()), torch.tensor([10.0, 900.0]), segs(classes=256)
    labels = torch.ones(2, dtype=torch.int64)
    with torch.no_grad():
        down, mid = theirs(x, t, bit_planes(seg, 256), 0.7, class_labels=labels)
        own_down, own_mid = ours(x, t, bit_planes(seg, 256), 0.7, class_labels=labels)
        cached = ours.residuals(x, t, condition(), ours.encode(ControlCondition(seg))).scaled(0.7)
    for one, two, three in zip([*down, mid], [*own_down, own_mid], [*cached.down, cached.mid], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert torch.equal(two, three)


def test_a_class_number_becomes_its_binary_digits_lowest_first():
    planes = bit_planes(torch.tensor([200], dtype=torch.uint8).view(1, 1, 1, 1), 256)
    assert planes.flatten().tolist() == [0, 0, 0, 1, 0, 0, 1, 1]


def test_the_start_is_a_copy_that_computes_what_the_base_computes():
    base, control = make_base(), make_control().eval()
    report = control.start_from(base, geometry=condition(1))
    names = set(control.state_dict())
    assert {*report.copied, *report.folded, *report.fresh} == names
    assert len(report.copied) + len(report.folded) + len(report.fresh) == len(names)
    assert all(name.startswith(FRESH) for name in report.fresh)
    assert all(".time_emb_proj." in name for name in report.folded)
    assert f"{len(report.copied)} tensors copied" in str(report)

    # Let everything through: the copy's own features must be those of the base at this spacing.
    seen = {}
    base.middle_block.register_forward_hook(lambda module, given, result: seen.update(base=result))
    control.middle_block.register_forward_hook(lambda module, given, result: seen.update(copy=result))
    x, t = torch.randn(SHAPE, generator=seeded()), torch.tensor([10.0, 900.0])
    base.predict(x, t, condition())
    control.residuals(x, t, condition(), control.encode(ControlCondition(segs())))
    torch.testing.assert_close(seen["copy"], seen["base"], rtol=1e-4, atol=1e-5)


def test_the_start_changes_nothing_and_strength_0_is_the_base_bit_for_bit():
    base, control = make_base(), make_control().eval()
    control.start_from(base, geometry=condition(1))
    sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=3, guidance_scale=0.5)
    plain = sampler.sample(base.predict, SHAPE, condition(), seeded())

    def steered(network, **kwargs):
        encoded = network.encode(ControlCondition(segs()))
        return sampler.sample_with_controlnet(
            base.predict,
            SHAPE,
            condition(),
            seeded(),
            controlnet=network.residuals,
            control=encoded,
            **kwargs,
        )

    torch.testing.assert_close(steered(control), plain, rtol=0, atol=1e-5)
    shaken(control, std=0.1, seed=4)
    assert torch.equal(steered(control, control_strength=0.0), plain)
    assert not torch.allclose(steered(control), plain, atol=1e-3)
    one = steered(control)
    assert not torch.equal(steered(control, control_guidance_scale=1.0), one)
    assert not torch.equal(steered(control, control_strength=0.5), one)


def test_control_guidance_goes_from_the_base_beyond_the_steered_velocity():
    scheduler = RectifiedFlowSchedulerRF()
    sampler = RectifiedFlowSampler(scheduler=scheduler, steps=1, guidance_scale=2.0)

    class Shift:
        def scaled(self, strength):
            return strength

    def velocity(x, t, told, residuals):
        return torch.full_like(x, 1.0 * told.label[0].item() + 10.0 * (residuals or 0.0))

    noise = sampler.sample(lambda x, t, c: torch.zeros_like(x), SHAPE, condition(), seeded())
    end = sampler.sample_with_controlnet(
        velocity, SHAPE, condition(), seeded(), controlnet=lambda *given: Shift(), control=torch.zeros(1),
        control_strength=0.5, control_guidance_scale=3.0,
    )  # fmt: skip
    # Steered 6, unconditional 0, base 1: 6 + 2·(6 − 0) + 3·(6 − 1).
    torch.testing.assert_close(end - noise, torch.full(SHAPE, 33.0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conditions": ("image",), "source_modalities": ("T1", "T2")},
        {"conditions": ("label",)},
        {"conditions": ("mask", "image", "label"), "source_modalities": ("T1",)},
        {"encoder": "maisi", "seg_planes": "bits"},
    ],
    ids=["mask", "image", "label", "all", "maisi"],
)
def test_every_combination_of_conditions_steers_and_trains(settings):
    control = shaken(make_control(**settings), std=0.1)
    sources = len(settings.get("source_modalities", ()))
    images = torch.rand(2, sources, 8, 8, 8, generator=seeded()) if sources else None
    told = ControlCondition(segs(), torch.tensor([1, 2]), images=images)
    x, t = torch.randn(SHAPE, generator=seeded()), torch.tensor([10.0, 900.0])
    features = control.encode(told)
    residuals = control.residuals(x, t, condition(), features)
    (sum(r.square().sum() for r in residuals.down) + residuals.mid.square().sum()).backward()
    assert all(p.grad is not None for p in control.parameters())
    gone = control.encode(told.drop(torch.tensor([True, False])))
    assert not torch.equal(gone[0], features[0])
    assert torch.equal(gone[1], features[1])
    assert len({gone[0].numel(), features[0].numel()}) == 1


def test_weights_of_another_network_are_refused_before_anything_changes():
    control = make_control()
    before = {name: value.clone() for name, value in control.state_dict().items()}
    with pytest.raises(ValueError, match=r"\d+ tensors differ: .*conv_in.*not \(8, 2, 3, 3, 3\)"):
        control.start_from(make_base(num_channels=(16, 16)), geometry=condition(1))
    with pytest.raises(ValueError, match=r"class_embedding\.weight is missing"):
        control.start_from(make_base(num_class_embeds=None), geometry=condition(1))
    assert all(torch.equal(before[name], value) for name, value in control.state_dict().items())


def test_what_does_not_fit_is_refused():
    control = make_control()
    with pytest.raises(ValueError, match="got no mask"):
        control.encode(ControlCondition(label=torch.ones(1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="classes: expected numbers from 0 to 2"):
        control.encode(ControlCondition(torch.full((1, 8, 8, 8), 3, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="multiples of 2"):
        control.encode(ControlCondition(torch.zeros(1, 7, 8, 8, dtype=torch.uint8)))
    small = control.encode(ControlCondition(torch.zeros(2, 4, 4, 4, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"on the latent's grid \(4, 4, 4\)"):
        control.residuals(torch.zeros(SHAPE), torch.zeros(2), condition(), small)
    told = make_control(conditions=("label",))
    with pytest.raises(ValueError, match="labels: expected numbers from 0 to 4"):
        told.encode(ControlCondition(label=torch.tensor([5])))
    with pytest.raises(ValueError, match="class_labels should be provided"):
        control(torch.zeros(SHAPE), torch.zeros(2), torch.zeros(2, 3, 8, 8, 8))
    images = make_control(conditions=("image",), source_modalities=("T1", "T2"))
    with pytest.raises(ValueError, match="one channel for each of T1, T2"):
        images.encode(ControlCondition(images=torch.zeros(1, 1, 8, 8, 8)))
    with pytest.raises(ValueError, match="source_modalities: expected names"):
        make_control(conditions=("image",))
    with pytest.raises(ValueError, match="class labels for 'label'"):
        make_control(conditions=("label",), num_class_embeds=None)
    with pytest.raises(ValueError, match="expected 2 entries"):
        make_control(encoder="maisi", channels=(4, 6, 8))
    with pytest.raises(ValueError, match="got none of them"):
        ControlCondition()
