"""AutoencoderInferenceWrapper: volumes of any size, windows on the latent grid, codes never blended."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig, _overlap
from prod9.autoencoder.padding import crop, pad_to_multiple, padded_sides
from tests.autoencoder.tiny import build, volume


class Blockwise(nn.Module):
    """A network without context: every token sees its own block of f³ voxels and nothing else."""

    def __init__(self, factor):
        super().__init__()
        self.downsampling_factor = factor
        self.quantizer = FiniteScalarQuantizer((8, 5))
        self.largest = 0

    def encode(self, x):
        self.largest = max(self.largest, x[0].numel())
        mean = F.avg_pool3d(x, self.downsampling_factor)
        return torch.cat([4 * mean - 2, 2 * mean - 1], 1)

    def quantize(self, z):
        return self.quantizer.quantize(z)

    def embed(self, codes):
        return self.quantizer.codes_to_indices(codes)

    def indices_to_codes(self, tokens):
        return self.quantizer.indices_to_codes(tokens)

    def decode(self, codes):
        self.largest = max(self.largest, codes[0, :1].numel() * self.downsampling_factor**3)
        return F.interpolate(codes.mean(1, keepdim=True), scale_factor=self.downsampling_factor)


def wrapper(network, strategy, **changes):
    made = AutoencoderInferenceWrapper(build(), SlidingWindowConfig(strategy="whole"))
    made.autoencoder, made.config = network, SlidingWindowConfig(strategy=strategy, **changes)
    return made


@given(
    sides=st.tuples(*[st.integers(1, 40)] * 3),
    factor=st.sampled_from([1, 2, 3, 4]),
    windows=st.integers(1, 4),
    overlap=st.floats(0, 0.99),
    mode=st.sampled_from(["gaussian", "constant", "mean"]),
    batch=st.integers(1, 2),
    sw_batch_size=st.integers(1, 3),
)
def test_windows_equal_the_whole_volume_for_a_network_without_context(
    sides, factor, windows, overlap, mode, batch, sw_batch_size
):
    x = volume(batch, 1, *sides)
    network = Blockwise(factor)
    roi = (max(4, windows) * factor,) * 3
    options = {"roi_size": roi, "overlap": overlap, "mode": mode, "sw_batch_size": sw_batch_size}
    whole = wrapper(network, "whole")(x)
    tiled = wrapper(network, "sliding_window", **options)(x)
    torch.testing.assert_close(tiled.z_mu, whole.z_mu)
    torch.testing.assert_close(tiled.reconstruction, whole.reconstruction)
    assert tiled.reconstruction.shape == x.shape
    assert torch.equal(tiled.tokens, whole.tokens)


def test_memory_is_bounded_by_the_window():
    network = Blockwise(4)
    wrapper(network, "sliding_window", roi_size=(8, 8, 8), sw_batch_size=1)(volume(2, 1, 33, 20, 24))
    assert network.largest == 8**3


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.4, 0.6, 2 / 3, 0.9, 0.99])
@pytest.mark.parametrize("side", [64, 48, 4, 20])
def test_strides_are_multiples_of_the_factor_and_overlap_enough(side, overlap):
    stride = int(side * (1 - _overlap(side, overlap, 4)))
    assert stride % 4 == 0
    assert stride >= 4
    assert stride <= max(4, side * (1 - overlap))


@pytest.mark.parametrize("strategy", ["whole", "sliding_window"])
@pytest.mark.parametrize("sides", [(16, 16, 16), (17, 9, 22), (3, 5, 30)])
def test_the_four_entry_points_agree(strategy, sides):
    wrapped = AutoencoderInferenceWrapper(
        build().eval(), SlidingWindowConfig(roi_size=(12, 12, 12), strategy=strategy)
    )
    x = volume(2, 1, *sides)
    z_mu, z_sigma = wrapped.encode(x)
    tokens = wrapped.quantize_stage_2_inputs(x)
    grid = tuple(-(-side // 4) for side in sides)
    assert z_mu.shape == z_sigma.shape == (2, 3, *grid)
    assert not z_sigma.any()
    assert tokens.shape == (2, *grid)
    out = wrapped(x)
    assert torch.equal(out.tokens, tokens)
    assert torch.equal(out.z_mu, z_mu)
    assert torch.equal(out.latent, wrapped.autoencoder.indices_to_codes(tokens))
    decoded = wrapped.decode(out.latent)
    assert decoded.shape == (2, 1, *(4 * side for side in grid))
    torch.testing.assert_close(wrapped.decode_tokens(tokens), decoded)
    torch.testing.assert_close(out.reconstruction, crop(decoded, sides))
    assert not out.reconstruction.requires_grad


@torch.no_grad()
def test_whole_is_the_network_itself():
    network = build().eval()
    x = volume(1, 1, 16, 12, 8)
    wrapped = AutoencoderInferenceWrapper(network, SlidingWindowConfig(strategy="whole"))
    assert torch.equal(wrapped(x).reconstruction, network(x).reconstruction)
    assert torch.equal(wrapped(x).tokens, network(x).tokens)


@torch.no_grad()
def test_windows_larger_than_the_volume_are_one_pass():
    network = build().eval()
    x = volume(1, 1, 16, 12, 8)
    wrapped = AutoencoderInferenceWrapper(network, SlidingWindowConfig(roi_size=(64, 64, 64)))
    assert torch.equal(wrapped(x).reconstruction, network(x).reconstruction)


def test_autocast_does_not_reach_the_blending():
    wrapped = AutoencoderInferenceWrapper(build().eval(), SlidingWindowConfig(roi_size=(8, 8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wrapped(volume(1, 1, 16, 16, 16))
    assert out.z_mu.dtype == out.reconstruction.dtype == torch.float32


def test_windows_off_the_latent_grid_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(64, 30, 3\); use \(64, 28, 4\)"):
        AutoencoderInferenceWrapper(build(), SlidingWindowConfig(roi_size=(64, 30, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roi_size": (8, 8, 0)}, "three positive sides"),
        ({"overlap": 1.0}, r"overlap: expected a share in \[0, 1\)"),
        ({"sw_batch_size": 0}, "sw_batch_size"),
        ({"mode": "median"}, "mode: expected gaussian"),
        ({"strategy": "tiles"}, "strategy: expected whole"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindowConfig(**changes)


@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(1, 8))
def test_padding_moves_nothing_and_crops_back(sides, multiple):
    x = volume(1, 2, *sides)
    padded = pad_to_multiple(x, multiple)
    assert tuple(padded.shape[2:]) == padded_sides(sides, multiple)
    assert all(side % multiple == 0 for side in padded.shape[2:])
    assert torch.equal(crop(padded, sides), x)
    assert padded.sum() == pytest.approx(float(x.sum()), rel=1e-5)
