"""The shape annotations are live: were the import hook off, these calls would fail later or not at all."""

import pytest
import torch
from jaxtyping import TypeCheckError

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ, FiniteScalarQuantizer
from prod9.generator.maskgit import MaskGiTScheduler


def test_a_volume_without_its_batch_axis_is_refused():
    network = AutoencoderFSQ(levels=(5, 5), num_channels=(8, 8), num_res_blocks=(1, 1), norm_num_groups=4)
    with pytest.raises(TypeCheckError):
        network(torch.zeros(1, 8, 8, 8))


def test_a_latent_without_its_batch_axis_is_refused():
    with pytest.raises(TypeCheckError):
        FiniteScalarQuantizer((5, 5)).quantize(torch.zeros(2, 4, 4, 4))


def test_tokens_of_the_wrong_type_are_refused():
    with pytest.raises(TypeCheckError):
        MaskGiTScheduler(scheduler_type="log").corrupt(torch.zeros(1, 2, 2, 2), torch.Generator())
