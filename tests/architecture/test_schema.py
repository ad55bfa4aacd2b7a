"""The schema is the contract between a YAML file and the constructors."""

import inspect
from importlib import import_module

import pytest

from prod9.config.errors import sections
from prod9.config.schema import (
    STAGES,
    CombinedMetricConfig,
    ControlConditionConfig,
    ControlNetLossConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    DecoderModelConfig,
    DiffusionLossConfig,
    DiscriminatorConfig,
    FlowConfig,
    FlowControlConditionConfig,
    FlowControlLossConfig,
    FSQModelConfig,
    KLModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    RectifiedFlowModelConfig,
    RectifiedFlowSamplerConfig,
    RefinerLossConfig,
    RefinerModelConfig,
    SamplerConfig,
    SingleStreamModelConfig,
    SlidingWindowSection,
    TransformerLossConfig,
)


def all_sections(model):
    yield model
    for info in model.model_fields.values():
        for section in sections(info.annotation):
            yield from all_sections(section)


SECTIONS = sorted({s for model in STAGES.values() for s in all_sections(model)}, key=lambda s: s.__name__)

# Keywords of ControlNetRF that are those of its base.
_OF_THE_BASE = {
    "latent_channels", "num_channels", "attention_levels", "num_head_channels", "num_res_blocks",
    "downsampling_factor", "norm_num_groups", "resblock_updown", "include_fc", "num_class_embeds",
}  # fmt: skip
_TOLD = {"conditions", "num_mask_classes", "seg_planes", "source_modalities"}

_CONTROL = "prod9.training.algorithms.controlnet_trainer:ControlNetTrainer"

# section, constructors, keywords that come from elsewhere than the section
CONSTRUCTORS = [
    (KLModelConfig, "prod9.autoencoder.autoencoder_maisi:AutoencoderKlMaisi", set()),
    (RectifiedFlowModelConfig, "prod9.diffusion.diffusion_model:DiffusionModelRF", {"latent_channels"}),
    (FlowConfig, "prod9.diffusion.scheduler:RectifiedFlowSchedulerRF", set()),
    (RectifiedFlowSamplerConfig, "prod9.diffusion.sampler:RectifiedFlowSampler", {"scheduler"}),
    (
        DiffusionLossConfig,
        "prod9.training.algorithms.diffusion_trainer:DiffusionTrainer",
        {"network", "scheduler"},
    ),
    (FSQModelConfig, "prod9.autoencoder.autoencoder_fsq:AutoencoderFSQ", set()),
    (DiscriminatorConfig, "prod9.autoencoder.discriminator:Discriminator", set()),
    (
        LabelConditionalModelConfig,
        "prod9.generator.transformer:TransformerDecoder",
        {"levels", "source_latent"},
    ),
    (DecoderModelConfig, "prod9.generator.transformer:TransformerDecoder", {"levels", "source_latent"}),
    (
        SingleStreamModelConfig,
        "prod9.generator.single_stream:TransformerDecoderSingleStream",
        {"levels"},
    ),
    (RefinerModelConfig, "prod9.generator.refiner:Refiner", set()),
    (RefinerLossConfig, "prod9.training.algorithms.refiner_trainer:RefinerTrainer", {"refiner"}),
    (
        ControlNetMaskGiTModelConfig,
        "prod9.generator.controlnet_maskgit:ControlNetMaskGiT",
        {"base", "downsampling_factor", "num_labels", "condition_type", "num_mask_classes"},
    ),
    (
        ControlConditionConfig,
        "prod9.generator.controlnet_maskgit:ControlNetMaskGiT",
        {"base", "downsampling_factor", "num_labels", "channels"},
    ),
    (
        ControlNetLossConfig,
        f"{_CONTROL} prod9.training.algorithms.control_tokens:TokenControl",
        {"family", "decoder", "controlnet", "scheduler"},
    ),
    (
        ControlNetRFModelConfig,
        "prod9.controlnet.controlnet_model:ControlNetRF",
        _OF_THE_BASE | _TOLD,
    ),
    (
        FlowControlConditionConfig,
        "prod9.controlnet.controlnet_model:ControlNetRF",
        _OF_THE_BASE | {"encoder", "channels", "use_checkpointing", "native_ops"},
    ),
    (
        FlowControlLossConfig,
        f"{_CONTROL} prod9.training.algorithms.control_flow:FlowControl",
        {"family", "base", "controlnet", "scheduler"},
    ),
    (MaskingConfig, "prod9.generator.maskgit:MaskGiTScheduler", set()),
    (SamplerConfig, "prod9.generator.maskgit:MaskGiTSampler", set()),
    (
        TransformerLossConfig,
        "prod9.training.algorithms.transformer_trainer:TransformerTrainer",
        {"decoder", "scheduler"},
    ),
    (SlidingWindowSection, "prod9.autoencoder.inference:SlidingWindowConfig", set()),
    (CombinedMetricConfig, "prod9.measures.metrics:CombinedMetric", set()),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_section_and_field_is_described(section):
    assert section.__doc__ or section.__name__.startswith("_")
    bare = [name for name, info in section.model_fields.items() if not info.description]
    assert not bare


@pytest.mark.parametrize(("section", "path", "given"), CONSTRUCTORS, ids=lambda v: getattr(v, "__name__", ""))
def test_field_names_are_constructor_keywords(section, path, given):
    parameters = {}
    for one in path.split():
        module, _, name = one.partition(":")
        parameters |= inspect.signature(getattr(import_module(module), name)).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    assert set(section.model_fields) - {"kind"} == set(parameters) - given


@pytest.mark.parametrize("model", STAGES.values(), ids=STAGES)
def test_the_stage_names_its_own_root(model):
    assert STAGES[model.model_fields["stage"].default] is model
