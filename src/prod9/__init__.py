"""prod9: generative models of 3D medical images.

The stages, and where each lives:

=====  ================================  ========================================
stage  what it does                      where
=====  ================================  ========================================
0      files to tensors                  ``prod9.data``
1      volume to tokens or latent        ``prod9.autoencoder``
2      learn the tokens (MaskGiT)        ``prod9.generator``
2      correct translations (MaskGiT)    ``prod9.generator.refiner``
2      sharpen volumes                   ``prod9.detail``
2      learn the latent (MAISI)          ``prod9.diffusion``
3      steer with segmentations          ``prod9.generator``, ``prod9.controlnet``
-      what the stages are               ``prod9.stages``
-      configure any of these            ``prod9.config``
-      choose and size a configuration   ``prod9.planning``
-      train any of these                ``prod9.training``
-      load and share trained networks   ``prod9.models``
-      generate volumes                  ``prod9.pipelines``
-      metrics of volumes                ``prod9.measures``
-      score what was generated          ``prod9.evaluation``
-      all of it on simulated patients   ``prod9.demo``
-      the commands                      ``prod9.cli``
=====  ================================  ========================================

Importing ``prod9`` imports nothing heavy; what :data:`__all__` names is imported when it is used.

Example:
    >>> import prod9
    >>> model = prod9.load("demo/label", device="cpu")
    >>> model("T1", steps=2)
    [Result(T1, 48 × 56 × 48 voxels of 3.75 × 3.75 × 3.75 mm, seed 0)]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prod9.system.machine import ensure_user_name

if TYPE_CHECKING:
    from prod9.config.load import load_config as load_config
    from prod9.pipelines.control import ControlPipeline as ControlPipeline
    from prod9.pipelines.inpainting import InpaintingPipeline as InpaintingPipeline
    from prod9.pipelines.loaded.load import load as load
    from prod9.pipelines.loaded.volumes import Result as Result
    from prod9.pipelines.loaded.volumes import load_volume as load_volume
    from prod9.pipelines.maisi import MAISIPipeline as MAISIPipeline
    from prod9.pipelines.maisi_control import MAISIControlPipeline as MAISIControlPipeline
    from prod9.pipelines.maskgit import MaskGiTPipeline as MaskGiTPipeline
    from prod9.pipelines.patients import PatientPipeline as PatientPipeline
    from prod9.pipelines.reconstruction import ReconstructionPipeline as ReconstructionPipeline
    from prod9.pipelines.translation import TranslationPipeline as TranslationPipeline

__version__ = "9.0.0"

_HOMES = {
    "ControlPipeline": "prod9.pipelines.control",
    "InpaintingPipeline": "prod9.pipelines.inpainting",
    "MAISIControlPipeline": "prod9.pipelines.maisi_control",
    "MAISIPipeline": "prod9.pipelines.maisi",
    "MaskGiTPipeline": "prod9.pipelines.maskgit",
    "PatientPipeline": "prod9.pipelines.patients",
    "ReconstructionPipeline": "prod9.pipelines.reconstruction",
    "Result": "prod9.pipelines.loaded.volumes",
    "TranslationPipeline": "prod9.pipelines.translation",
    "load": "prod9.pipelines.loaded.load",
    "load_config": "prod9.config.load",
    "load_volume": "prod9.pipelines.loaded.volumes",
}
__all__ = [
    "ControlPipeline",
    "InpaintingPipeline",
    "MAISIControlPipeline",
    "MAISIPipeline",
    "MaskGiTPipeline",
    "PatientPipeline",
    "ReconstructionPipeline",
    "Result",
    "TranslationPipeline",
    "__version__",
    "load",
    "load_config",
    "load_volume",
]

ensure_user_name()  # before anything imports MONAI, in every process that a run starts


def __getattr__(name: str) -> Any:
    """Import what is named in :data:`__all__` when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prod9' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the names of :data:`__all__` beside those of the module."""
    return sorted({*globals(), *__all__})
