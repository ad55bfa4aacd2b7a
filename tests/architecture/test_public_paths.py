"""Where the architecture says a class is, there it can be imported; and it is the same class everywhere."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

HOMES = {
    "prod9.autoencoder.autoencoder_fsq": ("AutoencoderFSQ", "FiniteScalarQuantizer"),
    "prod9.autoencoder.inference": ("AutoencoderInferenceWrapper", "SlidingWindowConfig"),
    "prod9.autoencoder.padding": (),
    "prod9.autoencoder.autoencoder_maisi": ("AutoencoderKlMaisi",),
    "prod9.diffusion.diffusion_model": ("DiffusionModelRF",),
    "prod9.diffusion.scheduler": ("RectifiedFlowSchedulerRF",),
    "prod9.diffusion.sampler": ("RectifiedFlowSampler",),
    "prod9.training.algorithms.diffusion_trainer": ("DiffusionTrainer",),
    "prod9.training.lightning.maisi_vae_lightning": ("MAISIVAELightning",),
    "prod9.training.lightning.maisi_diffusion_lightning": ("MAISIDiffusionLightning",),
    "prod9.pipelines.maisi": ("MAISIPipeline",),
    "prod9.autoencoder.factory": (),
    "prod9.data.builders": ("DatasetBuilder",),
    "prod9.data.transforms": ("TransformBuilder",),
    "prod9.data.datasets.brats": ("CachedRandomModalityDataset", "CachedAllModalitiesDataset"),
    "prod9.data.datasets.medmnist": ("CachedMedMNIST3DStage1Dataset", "MedMNIST3DStage2Dataset"),
    "prod9.training.data.medmnist3d": ("MedMNIST3DDataModule",),
    "prod9.generator.maskgit": ("MaskGiTSampler", "MaskGiTScheduler"),
    "prod9.generator.modules": ("AdaLNZeroBlock", "SinCosPosEmbed"),
    "prod9.generator.transformer": ("TransformerDecoder",),
    "prod9.generator.modality_processor": ("ModalityProcessor",),
    "prod9.generator.condition": ("MaskGiTConditionGenerator",),
    "prod9.training.algorithms.autoencoder_trainer": ("AutoencoderTrainer",),
    "prod9.training.algorithms.transformer_trainer": ("TransformerTrainer",),
    "prod9.training.lightning.autoencoder_lightning": ("AutoencoderLightning",),
    "prod9.training.lightning.transformer_lightning": ("TransformerLightning",),
    "prod9.training.lightning.label_conditional_lightning": ("LabelConditionalTransformerLightning",),
    "prod9.models.factory": ("ModelFactory",),
    "prod9.models.checkpoint_manager": ("CheckpointManager",),
    "prod9.config.load": ("load_config",),
    "prod9.training.losses": ("VAEGANLoss",),
    "prod9.measures.metrics": ("CombinedMetric", "psnr", "ssim3d"),
    "prod9.training.data.brats": ("BraTSDataModule",),
    "prod9.training.data.label_conditional": ("BraTSLabelConditionalDataModule",),
    "prod9.controlnet.condition_encoder": ("ConditionEncoder",),
    "prod9.controlnet.controlnet_model": ("ControlNetRF",),
    "prod9.controlnet.factory": (),
    "prod9.training.lightning.controlnet_lightning": ("ControlNetLightning",),
    "prod9.pipelines.maisi_control": ("MAISIControlPipeline",),
    "prod9.generator.controlnet_maskgit": ("ControlNetMaskGiT",),
    "prod9.training.algorithms.controlnet_trainer": ("ControlNetTrainer",),
    "prod9.training.lightning.controlnet_maskgit_lightning": ("ControlNetLightningMaskGiT",),
    "prod9.training.data.control": ("BraTSControlNetDataModule",),
    "prod9.config.control": ("MaskGiTControlNetLightningConfig",),
    "prod9.pipelines.control": ("ControlPipeline",),
    "prod9.pipelines.maskgit": ("MaskGiTPipeline",),
}
SHIMS = {
    "prod9.diffusion.scheduler": {"DiffusionModelRF": "prod9.diffusion.diffusion_model"},
    "prod9.generator.transformer": {"TransformerDecoderSingleStream": "prod9.generator.single_stream"},
    "prod9.training.brats_controlnet_data": {"BraTSControlNetDataModule": "prod9.training.data.control"},
    "prod9.training.brats_data": {"BraTSDataModule": "prod9.training.data.brats"},
    "prod9.training.brats_label_conditional_data": {
        "BraTSLabelConditionalDataModule": "prod9.training.data.label_conditional",
    },
    "prod9.training.config": {
        "config_from_dict": "prod9.config.load",
        "config_to_dict": "prod9.config.load",
        "load_config": "prod9.config.load",
    },
    "prod9.training.config_schema": {"RunConfig": "prod9.config.schema"},
    "prod9.training.controlnet_lightning": {
        "ControlNetLightning": "prod9.training.lightning.controlnet_lightning",
    },
    "prod9.training.controlnet_maskgit_lightning": {
        "ControlNetLightningMaskGiT": "prod9.training.lightning.controlnet_maskgit_lightning",
    },
    "prod9.training.label_conditional_transformer": {
        "LabelConditionalTransformerLightning": "prod9.training.lightning.label_conditional_lightning",
    },
    "prod9.training.lightning_module": {
        "AutoencoderLightning": "prod9.training.lightning.autoencoder_lightning",
        "TransformerLightning": "prod9.training.lightning.transformer_lightning",
    },
    "prod9.training.maisi_diffusion": {
        "MAISIDiffusionLightning": "prod9.training.lightning.maisi_diffusion_lightning"
    },
    "prod9.training.maisi_vae": {"MAISIVAELightning": "prod9.training.lightning.maisi_vae_lightning"},
    "prod9.training.maskgit_controlnet_config": {
        "MaskGiTControlNetLightningConfig": "prod9.config.control",
    },
    "prod9.training.medmnist3d_data": {"MedMNIST3DDataModule": "prod9.training.data.medmnist3d"},
    "prod9.training.metrics": {
        "CombinedMetric": "prod9.measures.metrics",
        "LPIPS": "prod9.measures.perceptual",
        "psnr": "prod9.measures.metrics",
        "ssim3d": "prod9.measures.metrics",
    },
    "prod9.training.model.checkpoint_manager": {"CheckpointManager": "prod9.models.checkpoint_manager"},
    "prod9.training.model.model_factory": {"ModelFactory": "prod9.models.factory"},
    "prod9.training.transformer": {
        "TransformerLightning": "prod9.training.lightning.transformer_lightning",
    },
}
"""Paths of the architecture that hand on a class from its home."""
OWN_CLASSES = {"prod9.diffusion.scheduler", "prod9.generator.transformer"}
"""Those that are homes of other classes, too."""


@pytest.mark.parametrize("module", HOMES)
def test_a_home_holds_its_classes(module):
    home = import_module(module)
    for name in HOMES[module]:
        thing = getattr(home, name)
        assert thing.__module__ == module, f"{name} lives in {thing.__module__}"


@pytest.mark.parametrize("module", SHIMS)
@pytest.mark.filterwarnings("ignore:prod9.training.lightning_module is deprecated:DeprecationWarning")
def test_a_shim_hands_on_the_same_class(module):
    shim = import_module(module)
    for name, home in SHIMS[module].items():
        assert getattr(shim, name) is getattr(import_module(home), name)


def test_the_old_home_says_that_it_is_deprecated():
    sys.modules.pop("prod9.training.lightning_module", None)
    with pytest.warns(DeprecationWarning, match="lightning_module is deprecated"):
        import_module("prod9.training.lightning_module")


@pytest.mark.parametrize("module", sorted(SHIMS.keys() - OWN_CLASSES))
def test_a_shim_holds_nothing_of_its_own_and_nobody_imports_it(module):
    path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
    body = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.ImportFrom)]
    warning = module == "prod9.training.lightning_module"
    assert len(body) == (3 if warning else 1), "a re-export is a docstring and imports"
    pattern = re.compile(rf"(from|import) {re.escape(module)}\b")
    users = [other for other in SOURCE.rglob("*.py") if pattern.search(other.read_text())]
    assert not users
