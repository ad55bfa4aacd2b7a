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

Importing ``prod9`` imports nothing heavy.
"""

from prod9.system.machine import ensure_user_name

__version__ = "9.0.0"

ensure_user_name()  # before anything imports MONAI, in every process that a run starts
