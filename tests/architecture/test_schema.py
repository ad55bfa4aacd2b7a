"""The schema is the contract between a YAML file and the constructors."""

import inspect
from importlib import import_module
from typing import get_args, get_type_hints

import pytest

from prod9.config.errors import sections
from prod9.config.schema import (
    CONFIGS,
    CombinedMetricConfig,
    ControlConditionConfig,
    ControlNetLossConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    DecoderModelConfig,
    DetailFlowConfig,
    DetailLossConfig,
    DetailModelConfig,
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
    TranslationDetailModelConfig,
)
from prod9.diffusion.diffusion_model import UNetOptions


def all_sections(model):
    yield model
    for info in model.model_fields.values():
        for section in sections(info.annotation):
            yield from all_sections(section)


SECTIONS = sorted({s for model in CONFIGS.values() for s in all_sections(model)}, key=lambda s: s.__name__)

# Keywords of ControlNetRF that come from its base and from the autoencoder.
_OF_THE_BASE = {*UNetOptions.__annotations__, "downsampling_factor"}
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
    (
        DecoderModelConfig,
        "prod9.generator.transformer:TransformerDecoder",
        {"levels", "source_latent", "covariates"},
    ),
    (
        SingleStreamModelConfig,
        "prod9.generator.single_stream:TransformerDecoderSingleStream",
        {"levels"},
    ),
    (RefinerModelConfig, "prod9.generator.refiner:Refiner", set()),
    (DetailModelConfig, "prod9.detail.network:DetailNetwork", {"num_sources"}),
    (TranslationDetailModelConfig, "prod9.detail.network:DetailNetwork", {"num_sources"}),
    (DetailFlowConfig, "prod9.detail.flow:DetailFlow", set()),
    (
        DetailLossConfig,
        "prod9.training.algorithms.detail_trainer:DetailTrainer",
        {"network", "flow", "steps"},
    ),
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
        # The noise at the start is that of the section `start`.
        {"family", "base", "controlnet", "scheduler", "start_noise"},
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
    taken = set()
    for one in path.split():
        module, _, name = one.partition(":")
        taken |= keywords(getattr(import_module(module), name))
    # `weak_model` names the file of a network that the sampler is called with.
    assert set(section.model_fields) - {"kind", "weak_model"} == taken - given


def keywords(cls):
    """Return the names of the keywords of a constructor, those of its ``**options: Unpack[...]`` among them."""
    found = set()
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_args(get_type_hints(cls.__init__)[name])
            found |= options.__annotations__.keys()
        else:
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("options", "path", "own"),
    [
        ("prod9.autoencoder.backbone:BackboneOptions", "MaisiBackbone", {"latent_channels"}),
        ("prod9.generator.token_decoder:DecoderOptions", "AbstractTokenDecoder", {"condition"}),
    ],
)
def test_options_that_are_passed_on_are_those_of_the_base_class(options, path, own):
    module, _, name = options.partition(":")
    home = import_module(module)
    parameters = inspect.signature(getattr(home, path)).parameters
    optional = {key for key, parameter in parameters.items() if parameter.default is not parameter.empty}
    options = getattr(home, name)
    assert set(options.__annotations__) == set(parameters) - own
    assert options.__optional_keys__ == optional


@pytest.mark.parametrize("model", CONFIGS.values(), ids=CONFIGS)
def test_the_stage_names_its_own_root(model):
    assert CONFIGS[model.model_fields["stage"].default] is model
