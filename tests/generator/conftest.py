"""The two decoders that tests of the sampler share: a fixed distribution, and a small network."""

import pytest
import torch

from prod9.generator.heads import TokenVocabulary
from prod9.generator.transformer import TransformerDecoder
from tests.draws import seeded, shaken
from tests.generator.oracles import FixedDecoder
from tests.generator.small import GRID


@pytest.fixture
def fixed() -> FixedDecoder:
    vocabulary = TokenVocabulary(levels=(4, 3), groups="per_level")
    return FixedDecoder(torch.randn(*GRID, 7, generator=seeded()), vocabulary)


@pytest.fixture(scope="module")
def decoder() -> TransformerDecoder:
    network = TransformerDecoder(
        levels=(5, 4), embed_dim=24, num_blocks=2, num_heads=2, patch_size=2, num_classes=3
    )
    return shaken(network, std=0.3, seed=0).eval()
