"""What a configuration may hold: strict, frozen pydantic models, one root per ``stage``.

Field names are the keyword arguments of the class that a section builds; the modules of this package hold all
defaults. None of them imports torch or Lightning, so a config is checked in well under a second.
"""

from collections.abc import Mapping
from typing import get_args

from prod9.config.autoencoders import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiscriminatorConfig,
    FSQModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from prod9.config.control import (
    ControlConditionConfig,
    ControlNetLossConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    ControlSamplingConfig,
    FlowControlConditionConfig,
    FlowControlLossConfig,
    MaisiControlNetConfig,
    MaskGiTControlNetLightningConfig,
    RegionContrastConfig,
)
from prod9.config.covariates import CovariatesConfig
from prod9.config.data import AugmentConfig, DataConfig, IntensityConfig, MedMNIST3DDataConfig, SplitConfig
from prod9.config.detail import (
    DetailConfig,
    DetailFlowConfig,
    DetailLossConfig,
    DetailModelConfig,
    DetailSamplerConfig,
    DetailSection,
    MaisiDetailConfig,
    ReconstructionDetailSection,
    ReconstructionsConfig,
    TranslationDetailConfig,
    TranslationDetailModelConfig,
)
from prod9.config.flow import (
    DiffusionLossConfig,
    FlowConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaisiVAELossConfig,
    RectifiedFlowModelConfig,
    RectifiedFlowSamplerConfig,
)
from prod9.config.maskgit import (
    ContextConfig,
    DecoderModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    SamplerConfig,
    SchedulerType,
    SingleStreamModelConfig,
    TransformerConfig,
    TransformerLossConfig,
    TransformerModelConfig,
)
from prod9.config.refiner import RefinerConfig, RefinerLossConfig, RefinerModelConfig, TranslationsConfig
from prod9.config.sections import (
    CallbacksConfig,
    CheckpointConfig,
    CombinedMetricConfig,
    EarlyStoppingConfig,
    EMAConfig,
    InputsConfig,
    LrScheduleConfig,
    MuonConfig,
    RunSection,
    SlidingWindowSection,
    TrainerConfig,
    TrainingConfig,
)
from prod9.config.types import Section

__all__ = [
    "CONFIGS", "AdversarialConfig", "AugmentConfig", "AutoencoderConfig", "AutoencoderLossConfig",
    "CallbacksConfig", "CheckpointConfig", "CombinedMetricConfig", "ContextConfig", "ControlConditionConfig",
    "ControlNetLossConfig", "ControlNetMaskGiTModelConfig", "ControlNetRFModelConfig",
    "ControlSamplingConfig", "CovariatesConfig", "DataConfig", "DecoderModelConfig", "DetailConfig", "DetailFlowConfig",
    "DetailLossConfig", "DetailModelConfig", "DetailSamplerConfig", "DetailSection", "DiffusionLossConfig",
    "DiscriminatorConfig", "EMAConfig", "EarlyStoppingConfig", "FSQModelConfig", "FlowConfig",
    "FlowControlConditionConfig", "FlowControlLossConfig", "InputsConfig", "IntensityConfig", "KLModelConfig",
    "LabelConditionalModelConfig", "LrScheduleConfig", "MaisiControlNetConfig", "MaisiDetailConfig",
    "MaisiDiffusionConfig", "MaisiVAEConfig", "MaisiVAELossConfig", "MaskGiTControlNetLightningConfig",
    "MaskingConfig", "MedMNIST3DDataConfig", "MuonConfig", "PerceptualConfig", "ReconstructionDetailSection",
    "ReconstructionsConfig", "RectifiedFlowModelConfig", "RectifiedFlowSamplerConfig", "RefinerConfig",
    "RefinerLossConfig", "RefinerModelConfig", "RegionContrastConfig", "RunConfig", "RunSection",
    "SamplerConfig", "SchedulerType", "Section", "SingleStreamModelConfig", "SlidingWindowSection",
    "SplitConfig", "Stage1Config", "TrainerConfig", "TrainingConfig", "TransformerConfig",
    "TransformerLossConfig", "TransformerModelConfig", "TranslationDetailConfig",
    "TranslationDetailModelConfig", "TranslationsConfig",
]  # fmt: skip

RunConfig = (
    AutoencoderConfig
    | TransformerConfig
    | RefinerConfig
    | DetailConfig
    | TranslationDetailConfig
    | MaskGiTControlNetLightningConfig
    | MaisiVAEConfig
    | MaisiDiffusionConfig
    | MaisiDetailConfig
    | MaisiControlNetConfig
)
CONFIGS: Mapping[str, type[RunConfig]] = {
    model.model_fields["stage"].default: model for model in get_args(RunConfig)
}
"""The root of each stage."""
