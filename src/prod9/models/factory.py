"""ModelFactory: builds an object from a section of the configuration.

Field names of the sections are keyword arguments of the constructors, so most methods are one call.
"""

from collections.abc import Sequence
from typing import Any, overload

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ, FiniteScalarQuantizer
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.discriminator import Discriminator
from prod9.autoencoder.factory import build_autoencoder
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
from prod9.config.schema import (
    ControlConditionConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    DecoderModelConfig,
    DetailFlowConfig,
    DetailModelConfig,
    DiscriminatorConfig,
    FlowConfig,
    FlowControlConditionConfig,
    FSQModelConfig,
    KLModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    RectifiedFlowModelConfig,
    RectifiedFlowSamplerConfig,
    RefinerModelConfig,
    SamplerConfig,
    SingleStreamModelConfig,
    SlidingWindowSection,
    TransformerModelConfig,
)
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.controlnet.factory import build_control_network
from prod9.detail.flow import DetailFlow
from prod9.detail.network import DetailNetwork
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.factory import build_decoder
from prod9.generator.maskgit import MaskGiTSampler, MaskGiTScheduler
from prod9.generator.refiner import Refiner
from prod9.generator.token_decoder import AbstractTokenDecoder


class ModelFactory:
    """Builds networks, losses, algorithms and samplers from checked configuration sections.

    Example:
        >>> from prod9.config.load import load_config
        >>> from prod9.models.factory import ModelFactory
        >>> config = load_config("demo/stage1")
        >>> type(ModelFactory.create_autoencoder(config.model)).__name__
        'AutoencoderFSQ'
    """

    @overload
    @staticmethod
    def create_autoencoder(model: FSQModelConfig) -> AutoencoderFSQ: ...

    @overload
    @staticmethod
    def create_autoencoder(model: KLModelConfig) -> AutoencoderKlMaisi: ...

    @staticmethod
    def create_autoencoder(model: FSQModelConfig | KLModelConfig) -> AutoencoderFSQ | AutoencoderKlMaisi:
        """Build the stage-1 network that ``model.kind`` names."""
        return build_autoencoder(model.kind, **model.kwargs())

    @staticmethod
    def create_quantizer(model: FSQModelConfig) -> FiniteScalarQuantizer:
        """Build the codebook of ``model`` alone, for looking codes up without the network."""
        return FiniteScalarQuantizer(model.levels, symmetric=model.symmetric)

    @staticmethod
    def create_discriminator(discriminator: DiscriminatorConfig) -> Discriminator:
        """Build the patch discriminator of stage 1."""
        return Discriminator(**discriminator.kwargs())

    @staticmethod
    def create_transformer(
        model: LabelConditionalModelConfig | DecoderModelConfig | SingleStreamModelConfig,
        *,
        levels: Sequence[int],
    ) -> AbstractTokenDecoder:
        """Build the stage-2 decoder for the codebook ``levels`` of its autoencoder."""
        return build_decoder(model.kind, levels=tuple(levels), **model.kwargs())

    @overload
    @staticmethod
    def create_controlnet(
        model: ControlNetMaskGiTModelConfig,
        condition: ControlConditionConfig,
        *,
        base_model: TransformerModelConfig,
        autoencoder: FSQModelConfig,
        base: AbstractTokenDecoder,
    ) -> ControlNetMaskGiT: ...

    @overload
    @staticmethod
    def create_controlnet(
        model: ControlNetRFModelConfig,
        condition: FlowControlConditionConfig,
        *,
        base_model: RectifiedFlowModelConfig,
        autoencoder: KLModelConfig,
    ) -> ControlNetRF: ...

    @staticmethod
    def create_controlnet(
        model: ControlNetMaskGiTModelConfig | ControlNetRFModelConfig,
        condition: ControlConditionConfig | FlowControlConditionConfig,
        *,
        base_model: Any,
        autoencoder: Any,
        base: AbstractTokenDecoder | None = None,
    ) -> ControlNetMaskGiT | ControlNetRF:
        """Build the stage-3 network of either family.

        Args:
            model: its own section; ``model.kind`` says which family it is of.
            condition: the section of what steers it.
            base_model: the section of the stage-2 network that it steers.
            autoencoder: the section of the stage-1 network below that.
            base: the transformer itself, parts of which a MaskGiT control network copies; none for a flow.

        Raises:
            ValueError: where a MaskGiT control network has no ``base``.
        """
        if model.kind == "controlnet_rf":
            return build_control_network(
                base_model,
                latent_channels=autoencoder.latent_channels,
                downsampling_factor=autoencoder.downsampling_factor,
                **model.kwargs(),
                **condition.kwargs(),
            )
        if base is None:
            raise ValueError(
                "base: expected the transformer that a MaskGiT control network starts from, got none; pass it."
            )
        return ControlNetMaskGiT(
            base=base,
            downsampling_factor=autoencoder.downsampling_factor,
            num_labels=base_model.num_classes,
            **model.kwargs(),
            **condition.kwargs(),
        )

    @staticmethod
    def create_refiner(model: RefinerModelConfig) -> Refiner:
        """Build the refiner of translations."""
        return Refiner(**model.kwargs())

    @staticmethod
    def create_detail(model: DetailModelConfig) -> DetailNetwork:
        """Build the network of a detail flow, with sources or without as ``model.kind`` says."""
        return DetailNetwork(num_sources=model.num_sources, **model.kwargs())

    @staticmethod
    def create_detail_flow(flow: DetailFlowConfig) -> DetailFlow:
        """Build the detail flow, one for training and sampling."""
        return DetailFlow(**flow.kwargs())

    @staticmethod
    def create_scheduler(masking: MaskingConfig) -> MaskGiTScheduler:
        """Build the masking schedule of training."""
        return MaskGiTScheduler(**masking.kwargs())

    @staticmethod
    def create_sampler(
        sampler: SamplerConfig, masking: MaskingConfig, *, autoguided: bool = False
    ) -> MaskGiTSampler:
        """Build the sampler of a decoder trained with ``masking``; ``sampler.scheduler`` wins over its schedule.

        autoguided: whether it is given a weaker decoder too; without one, as in the pictures of a training,
        ``sampler.autoguidance_scale`` does not count.
        """
        scheduler = MaskGiTScheduler(scheduler_type=sampler.scheduler or masking.scheduler_type)
        return MaskGiTSampler(scheduler=scheduler, **_sampling(sampler, autoguided, "scheduler"))

    @staticmethod
    def create_diffusion(model: RectifiedFlowModelConfig, *, latent_channels: int) -> DiffusionModelRF:
        """Build the stage-2 U-Net for a latent of ``latent_channels``."""
        return DiffusionModelRF(latent_channels=latent_channels, **model.kwargs())

    @staticmethod
    def create_flow_scheduler(flow: FlowConfig) -> RectifiedFlowSchedulerRF:
        """Build the flow, one for training and sampling."""
        return RectifiedFlowSchedulerRF(**flow.kwargs())

    @staticmethod
    def create_flow_sampler(
        sampler: RectifiedFlowSamplerConfig, flow: FlowConfig, *, autoguided: bool = False
    ) -> RectifiedFlowSampler:
        """Build the sampler of a network that was trained with ``flow``; autoguided: see :meth:`create_sampler`."""
        scheduler = ModelFactory.create_flow_scheduler(flow)
        return RectifiedFlowSampler(scheduler=scheduler, **_sampling(sampler, autoguided))

    @staticmethod
    def create_inference_wrapper(
        autoencoder: AutoencoderFSQ | AutoencoderKlMaisi,
        sliding_window: SlidingWindowSection | dict[str, Any],
    ) -> AutoencoderInferenceWrapper:
        """Wrap a stage-1 network, in evaluation mode, for volumes of any size.

        A section that was read from a header may be a dict.
        """
        if isinstance(sliding_window, dict):
            sliding_window = SlidingWindowSection.model_validate(sliding_window)
        return AutoencoderInferenceWrapper(autoencoder, SlidingWindowConfig(**sliding_window.kwargs())).eval()


def _sampling(
    sampler: SamplerConfig | RectifiedFlowSamplerConfig, autoguided: bool, *exclude: str
) -> dict[str, Any]:
    """Return the keywords of a sampler; the file of a weak model is none of them."""
    return sampler.kwargs("weak_model", *exclude, *(() if autoguided else ("autoguidance_scale",)))
