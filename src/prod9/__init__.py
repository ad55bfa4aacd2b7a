"""prod9: generative models of 3D medical images.

The stages, and where each lives:

=====  ==========================  =====================================
stage  what it does                where
=====  ==========================  =====================================
0      files to tensors            ``prod9.data``
1      volume to tokens or latent  ``prod9.autoencoder``
2      learn the tokens (MaskGiT)  ``prod9.generator``
2      learn the latent (MAISI)    ``prod9.diffusion``
3      steer with segmentations    ``prod9.generator``, ``prod9.controlnet``
-      train any of these          ``prod9.training``
-      generate volumes            ``prod9.pipelines``
-      score what was generated    ``prod9.evaluation``
-      the commands                ``prod9.cli``
=====  ==========================  =====================================

Importing ``prod9`` imports nothing heavy.
"""

from prod9.system.machine import ensure_user_name

__version__ = "9.0.0"

ensure_user_name()  # before anything imports MONAI, in every process that a run starts
