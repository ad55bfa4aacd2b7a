"""Estimates against the networks themselves: what they keep, and how many parameters they have."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.discriminator import Discriminator
from prod9.config.load import load_config, shipped_configs
from prod9.config.schema import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    ContextConfig,
    DataConfig,
    DiscriminatorConfig,
    FlowControlLossConfig,
    FSQModelConfig,
    KLModelConfig,
    LabelConditionalModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaskGiTControlNetLightningConfig,
    RectifiedFlowModelConfig,
    RegionContrastConfig,
    SingleStreamModelConfig,
    TransformerConfig,
)
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.factory import build_decoder
from prod9.generator.modality_processor import InContextCondition
from prod9.models.factory import ModelFactory
from prod9.models.meta import count_parameters
from prod9.planning import estimates
from prod9.planning.autoencoder import autoencoder_parameters
from prod9.planning.estimates import OVERHEAD
from prod9.planning.footprint import latent_grid
from prod9.training.optimizers import build_optimizer

SIDE = 32
estimate = partial(estimates.estimate, count=count_parameters)


def kept_bytes(forward, network):
    """What autograd keeps for the backward pass beyond the parameters; each buffer counts once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(size for pointer, (size, _) in storages.items() if pointer not in parameters)


def activations(config, **keywords):
    """The estimate's own share for activations."""
    return estimate(config, device="cpu", **keywords).kept_bytes


@pytest.fixture
def stage1():
    model = FSQModelConfig(
        levels=(8, 6, 5), space_to_depth=2, num_channels=(16, 32), num_res_blocks=(1, 2), norm_num_groups=8
    )
    return AutoencoderConfig(
        output_dir="x",
        data=DataConfig(root="x", grid=(SIDE, SIDE, SIDE)),
        model=model,
        loss={"adversarial": {"weight": 0.0}},
    )


@pytest.mark.parametrize("front_end", ["fold", "haar"])
def test_stage_1_is_close_to_what_a_network_keeps(stage1, front_end):
    stage1 = stage1.model_copy(update={"model": stage1.model.model_copy(update={"front_end": front_end})})
    network = AutoencoderFSQ(**stage1.model.kwargs()).to(memory_format=torch.channels_last_3d)
    parameters = sum(p.numel() for p in network.parameters())
    assert estimate(stage1).parameters == parameters
    x = torch.rand(1, 1, SIDE, SIDE, SIDE).contiguous(memory_format=torch.channels_last_3d)
    kept = kept_bytes(lambda: network(x).reconstruction, network)
    assert 0.9 < activations(stage1) / kept < 1.4


@pytest.mark.parametrize("name", ["maskgit/brats/stage1/fsq_x8", "maisi/autoencoder/brats_released_80gb"])
def test_the_weights_of_a_frozen_autoencoder_are_counted(name):
    model = load_config(name, fill_variables=False).model
    with torch.device("meta"):
        network = ModelFactory.create_autoencoder(model)
    assert autoencoder_parameters(model) == sum(p.numel() for p in network.parameters())


def test_stage_2_is_close_to_what_a_network_keeps(stage1):
    model = LabelConditionalModelConfig(embed_dim=48, num_blocks=3, num_heads=4, groups="per_level")
    config = TransformerConfig(output_dir="x", data=stage1.data, model=model)
    network = build_decoder("label_conditional", levels=stage1.model.levels, **model.kwargs()).train()
    parameters = sum(p.numel() for p in network.parameters())
    assert estimate(config, autoencoder=stage1.model).parameters == parameters

    grid = latent_grid((SIDE,) * 3, stage1.model.downsampling_factor)
    tokens = torch.zeros(1, *grid, dtype=torch.int64)
    condition = MaskGiTCondition(label=torch.tensor([1]))

    def forward():
        mask = torch.ones(1, *grid, dtype=torch.bool)
        return network(tokens, mask, network.prepare(condition)).log_prob(tokens)

    kept = kept_bytes(forward, network)
    assert 0.8 < activations(config, autoencoder=stage1.model) / kept < 1.4


def test_stage_2b_counts_its_longest_context(stage1):
    model = SingleStreamModelConfig(
        embed_dim=48, num_blocks=3, num_heads=4, groups="per_level", patch_size=2, context_stride=2
    )
    context = ContextConfig(max_examples=1)
    config = TransformerConfig(output_dir="x", data=stage1.data, model=model, context=context)
    network = build_decoder("single_stream", levels=stage1.model.levels, **model.kwargs()).train()
    parameters = sum(p.numel() for p in network.parameters())
    assert estimate(config, autoencoder=stage1.model).parameters == parameters

    grid = latent_grid((SIDE,) * 3, stage1.model.downsampling_factor)
    tokens = torch.zeros(1, *grid, dtype=torch.int64)
    slots = context.slots(4)
    assert slots == 7
    sources = torch.randn(1, slots, len(stage1.model.levels), *grid)
    condition = InContextCondition(torch.tensor([1]), torch.arange(slots)[None] % 4, sources)

    def forward():
        mask = torch.ones(1, *grid, dtype=torch.bool)
        return network(tokens, mask, network.prepare(condition)).log_prob(tokens)

    kept = kept_bytes(forward, network)
    assert 0.8 < activations(config, autoencoder=stage1.model) / kept < 1.4


def test_the_discriminator_counts_where_there_is_one(stage1):
    adversarial = AdversarialConfig(weight=0.1, discriminator=DiscriminatorConfig(channels=8))
    loss = AutoencoderLossConfig(adversarial=adversarial)
    extra = estimate(stage1.model_copy(update={"loss": loss})).parameters - estimate(stage1).parameters
    network = Discriminator(**adversarial.discriminator.kwargs())
    assert extra == sum(p.numel() for p in network.parameters())


def test_recomputation_and_half_precision_save_memory(stage1):
    model = stage1.model.model_copy(update={"use_checkpointing": True})
    lean = stage1.model_copy(update={"model": model})
    assert estimate(lean).memory_bytes < estimate(stage1).memory_bytes
    trainer = stage1.trainer.model_copy(update={"precision": "32-true"})
    single = stage1.model_copy(update={"trainer": trainer})
    assert estimate(stage1, device="cuda").memory_bytes < estimate(single, device="cuda").memory_bytes
    # A CPU's kernels compute the value between norm and activation again.
    assert estimate(single, device="cpu").kept_bytes < estimate(single, device="cuda").kept_bytes


def test_the_grid_is_rounded_up_to_whole_tokens():
    assert latent_grid((144, 192, 145), 8) == (18, 24, 19)


@pytest.fixture(scope="module")
def needs():
    """What each shipped config needs, by name, as the tables say it."""
    path = Path(__file__).parents[2] / "docs" / "tools" / "config_tables.py"
    spec = importlib.util.spec_from_file_location("config_tables", path)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    configs = tables.shipped()
    return {name: tables.need_of(config, configs) for name, config in configs.items()}


@pytest.mark.parametrize("name", [n for n in shipped_configs() if n.startswith("maskgit/brats")])
def test_brats_configs_hold_7776_tokens_and_fit_their_gpu(name, needs):
    need = needs[name]
    if "refiner" not in name and "detail" not in name:  # which works on volumes
        assert (need.latent_grid, need.tokens) == ((18, 24, 18), 7776)
    # A fifth of the device stays free for the context, the allocator and what the estimate leaves out.
    assert need.memory_gib < 0.8 * (80 if "80gb" in name else 24)


@pytest.mark.parametrize("name", [n for n in shipped_configs() if n.startswith("demo/")])
def test_demo_configs_fit_a_laptop(name, needs):
    assert needs[name].memory_gib < 4


def test_shipped_transformers_count_their_parameters(needs):
    assert f"{needs['maskgit/brats/stage2_label/base'].parameters / 1e6:.1f} M" == "57.3 M"


@pytest.mark.parametrize(
    ("model", "condition"),
    [
        ({"channels": (4, 6)}, {"conditions": ("mask",)}),
        ({"channels": (4, 6)}, {"conditions": ("label",)}),
        ({"channels": (4,)}, {"conditions": ("mask", "image", "label"), "source_modalities": ("T1", "T2")}),
        ({"encoder": "maisi", "channels": (4, 6, 8)}, {"seg_planes": "bits", "num_mask_classes": 256}),
    ],
    ids=["mask", "label", "all", "maisi"],
)
@pytest.mark.parametrize("updown", [True, False])
def test_stage_3_of_maisi_counts_the_parameters_of_its_network(stage1, model, condition, updown):
    autoencoder = KLModelConfig(
        num_channels=(8, 8), num_res_blocks=(1, 1), norm_num_groups=4, space_to_depth=2
    )
    unet = RectifiedFlowModelConfig(
        num_channels=(8, 16),
        attention_levels=(False, True),
        num_head_channels=(0, 8),
        num_res_blocks=2,
        norm_num_groups=4,
        num_class_embeds=5,
        resblock_updown=updown,
        include_fc=updown,
    )
    data = stage1.data.model_copy(update={"label_map": {"T1": 1, "T1ce": 2, "T2": 3, "FLAIR": 4}})
    base = MaisiDiffusionConfig(output_dir="x", data=data, model=unet)
    config = MaisiControlNetConfig(output_dir="x", data=data, model=model, condition=condition)
    network = ModelFactory.create_controlnet(
        config.model, config.condition, base_model=unet, autoencoder=autoencoder
    )
    need = estimate(config, base=base, autoencoder=autoencoder, device="cpu")
    assert need.parameters == sum(p.numel() for p in network.parameters())
    assert need.memory_bytes > 16 * need.parameters
    twice = config.model_copy(update={"loss": FlowControlLossConfig(contrast=RegionContrastConfig())})
    assert estimate(twice, base=base, autoencoder=autoencoder, device="cpu").memory_bytes > need.memory_bytes


@pytest.mark.parametrize("condition_type", ["mask", "label", "both"])
@pytest.mark.parametrize(("patch_size", "num_blocks"), [(1, 3), (2, 4)])
def test_stage_3_counts_the_parameters_of_its_network(stage1, condition_type, patch_size, num_blocks):
    model = LabelConditionalModelConfig(
        embed_dim=48, num_blocks=num_blocks, num_heads=4, groups="per_level", patch_size=patch_size
    )
    base = TransformerConfig(output_dir="x", data=stage1.data, model=model)
    config = MaskGiTControlNetLightningConfig(
        output_dir="x",
        data=stage1.data,
        model={"channels": [4, 6]},
        condition={"condition_type": condition_type},
    )
    network = ModelFactory.create_controlnet(
        config.model,
        config.condition,
        base=build_decoder("label_conditional", levels=stage1.model.levels, **model.kwargs()),
        base_model=model,
        autoencoder=stage1.model,
    )
    need = estimate(config, base=base, autoencoder=stage1.model, device="cpu")
    assert need.parameters == sum(p.numel() for p in network.parameters())
    alone = estimate(base, autoencoder=stage1.model, device="cpu")
    assert need.checkpoint_bytes < alone.checkpoint_bytes
    assert need.tokens == alone.tokens


# -- optimizers and devices -----------------------------------------------------------------------------


def tokens_config(stage1, **sections):
    model = LabelConditionalModelConfig(embed_dim=192, num_blocks=6, num_heads=4)
    return TransformerConfig(output_dir="x", data=stage1.data, model=model, **sections)


@pytest.mark.parametrize("muon", [None, {}])
def test_the_state_of_the_optimizer_is_what_it_keeps(stage1, muon):
    config = tokens_config(stage1, training={"muon": muon})
    need = estimate(config, autoencoder=stage1.model, device="cpu")
    network = ModelFactory.create_transformer(config.model, levels=stage1.model.levels)
    optimizer = build_optimizer(network, config.training, rate=1e-3, main=True)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    kept = [*moments, *network.parameters()]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert need.checkpoint_bytes == pytest.approx(measured, rel=0.15)


def test_sharding_divides_the_state_but_not_the_activations(stage1):
    whole, halves, eighths = (
        estimate(
            tokens_config(
                stage1,
                trainer={"strategy": "fsdp" if devices > 1 else "auto", "devices": devices},
                training={"channels_last": False},
            ),
            autoencoder=stage1.model,
        )
        for devices in (1, 2, 8)
    )
    assert whole.kept_bytes == halves.kept_bytes == eighths.kept_bytes
    assert whole.memory_bytes > halves.memory_bytes > eighths.memory_bytes
    state = 16 * whole.parameters
    block = 8 * whole.parameters / 6
    assert (whole.memory_bytes - eighths.memory_bytes) / OVERHEAD == pytest.approx(
        state * 7 / 8 - block, rel=1e-6
    )
