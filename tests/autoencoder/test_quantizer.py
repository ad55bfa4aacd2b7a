"""FiniteScalarQuantizer: exact tokens, the published formula, and gradients in closed form."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
from prod9.autoencoder.native.fsq_function import _BLOCK

HALF = (torch.float32, torch.bfloat16, torch.float16)
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True])


def build(levels, symmetric=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FiniteScalarQuantizer(levels, symmetric=symmetric)


def grid(indices):
    return torch.as_tensor(indices).view(1, -1, 1, 1)


def constants(level):
    half_range = (level - 1) * 1.001 / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return half_range, offset, math.atanh(offset / half_range)


def published(z, level):
    """One channel of the paper's formula, in float64, its tan corrected to artanh."""
    half_range, offset, shift = constants(level)
    return torch.round(torch.tanh(z.double() + shift) * half_range - offset) / (level // 2)


@SYMMETRIC
@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (5, 5), (2, 3, 4), (7, 5, 5, 5), (999,)])
def test_every_token_comes_back_from_its_code(levels, symmetric):
    quantizer = build(levels, symmetric)
    tokens = grid(torch.arange(quantizer.vocab_size))
    codes = quantizer.indices_to_codes(tokens)
    assert torch.equal(quantizer.codes_to_indices(codes), tokens)
    assert len(codes[0, :, :, 0, 0].T.unique(dim=0)) == quantizer.vocab_size
    assert codes.abs().max() <= 1.0


@SYMMETRIC
@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (17,) * 6, (255, 256), (4, 3)])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_codes_give_the_same_tokens(levels, symmetric, dtype):
    quantizer = build(levels, symmetric)
    tokens = grid(torch.randint(quantizer.vocab_size, (4000,), generator=torch.Generator().manual_seed(1)))
    codes = quantizer.indices_to_codes(tokens)
    assert torch.equal(quantizer.codes_to_indices(codes.to(dtype)), tokens)


@SYMMETRIC
def test_codebooks_beyond_the_integers_of_float32_are_exact(symmetric):
    quantizer = build((17,) * 6, symmetric)
    top = quantizer.vocab_size - 1
    assert top > 2**24
    tokens = grid(torch.arange(top - 5000, top + 1))
    codes = quantizer.indices_to_codes(tokens)
    assert torch.equal(quantizer.codes_to_indices(codes), tokens)
    # tanh leaves every code where it is, since its bounded value rounds to the code's own level
    z = torch.atanh(codes.double().clamp(-0.999, 0.999)).float()
    assert torch.equal(quantizer(z)[1], quantizer.codes_to_indices(quantizer.quantize(z)))


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.booleans(), st.integers(0, 2**31))
def test_tokens_and_codes_agree_whatever_the_levels(levels, symmetric, seed):
    quantizer = build(levels, symmetric)
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(2, len(levels), 3, 4, 5, generator=generator)
    codes, tokens = quantizer(z)
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < quantizer.vocab_size
    assert torch.equal(quantizer.codes_to_indices(codes), tokens)
    assert torch.equal(quantizer.indices_to_codes(tokens), codes)
    digits = quantizer.indices_to_digits(tokens)
    assert (digits < quantizer.levels).all()
    assert (digits >= 0).all()
    assert torch.equal(quantizer.digits_to_indices(digits), tokens)


def test_the_first_channel_counts_fastest():
    quantizer = FiniteScalarQuantizer((8, 8, 8, 6, 5))
    assert quantizer.basis.tolist() == [1, 8, 64, 512, 3072]
    assert quantizer.vocab_size == 15360
    assert quantizer.indices_to_digits(torch.tensor(7972)).tolist() == [4, 4, 4, 3, 2]


@pytest.mark.parametrize("level", [2, 3, 4, 5, 6, 8, 17, 1000])
def test_codes_follow_the_published_formula(level):
    z = torch.linspace(-6, 6, 20001).view(1, 1, -1, 1, 1)
    half_range, offset, shift = constants(level)
    bounded = torch.tanh(z.double() + shift) * half_range - offset
    clear = ((bounded - bounded.floor()) - 0.5).abs() > 1e-4  # away from ties, where float32 may differ
    codes = build((level,)).quantize(z).double()
    torch.testing.assert_close(codes[clear], published(z, level)[clear], rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [2, 3, 5, 8])
def test_symmetric_codes_span_the_whole_range_evenly(level):
    z = torch.linspace(-9, 9, 4001).view(1, 1, -1, 1, 1)
    codes = build((level,), symmetric=True).quantize(z).unique()
    torch.testing.assert_close(codes, torch.linspace(-1, 1, level))


@pytest.mark.parametrize("level", range(2, 12))
def test_zero_stays_zero(level):
    assert build((level,)).quantize(torch.zeros(1, 1, 1, 1, 1)).item() == 0.0


@SYMMETRIC
def test_saturated_values_take_the_outermost_tokens(symmetric):
    quantizer = FiniteScalarQuantizer((8, 5), symmetric=symmetric)
    z = torch.tensor([-1e30, -50.0, 50.0, 1e30]).view(1, 1, 4, 1, 1).expand(1, 2, 4, 1, 1)
    digits = quantizer.indices_to_digits(quantizer(z)[1]).flatten(0, -2)
    assert digits.tolist() == [[0, 0], [0, 0], [7, 4], [7, 4]]


@SYMMETRIC
def test_the_gradient_is_that_of_the_bounded_value(symmetric):
    levels = (8, 6, 5)
    z = torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    incoming = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    build(levels, symmetric).quantize(z).backward(incoming)
    for i, level in enumerate(levels):
        half_range, _, shift = constants(level)
        slope = half_range / (level // 2)
        if symmetric:
            shift, slope = 0.0, 1.0
        expected = (1 - torch.tanh(z[:, i].detach() + shift) ** 2) * slope * incoming[:, i]
        torch.testing.assert_close(z.grad[:, i], expected)


def test_the_gradient_can_be_differentiated_again():
    z = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(FiniteScalarQuantizer((8, 5)).quantize, z)


@pytest.mark.parametrize("voxels", [_BLOCK - 1, _BLOCK, 2 * _BLOCK + 3])
def test_blocks_leave_no_seam(voxels):
    quantizer = FiniteScalarQuantizer((8, 5))
    z = torch.randn(1, 2, voxels, 1, 1, generator=torch.Generator().manual_seed(0))
    codes, tokens = quantizer(z)
    for i, level in enumerate((8, 5)):
        assert (codes[:, i].double() - published(z[:, i], level)).abs().gt(1e-6).float().mean() < 1e-4
    assert torch.equal(quantizer.codes_to_indices(codes), tokens)


def test_memory_format_changes_nothing():
    quantizer = FiniteScalarQuantizer((8, 6, 5)).to(memory_format=torch.channels_last_3d)
    z = torch.randn(2, 3, 4, 5, 6)
    other = z.to(memory_format=torch.channels_last_3d)
    codes, tokens = quantizer(other)
    assert codes.stride() == other.stride()
    assert torch.equal(codes, quantizer(z)[0])
    assert torch.equal(tokens, quantizer(z)[1])
    assert torch.equal(tokens, quantizer.codes_to_indices(codes))
    strided = torch.stack([z, z], -1)[..., 0]
    assert torch.equal(tokens, quantizer(strided)[1])


@pytest.mark.parametrize("dtype", HALF)
def test_arithmetic_is_float32_and_the_dtype_the_callers(dtype):
    quantizer = FiniteScalarQuantizer((8, 8, 8, 6, 5))
    z = torch.randn(1, 5, 8, 8, 8).to(dtype)
    codes, tokens = quantizer(z)
    assert codes.dtype == dtype
    assert torch.equal(tokens, quantizer(z.float())[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokens, quantizer(z)[1])
        assert torch.equal(tokens, quantizer.codes_to_indices(codes))


@pytest.mark.parametrize("levels", [(), (1, 8), (8, 1001)])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="2 to 1000"):
        FiniteScalarQuantizer(levels)


def test_vocabularies_beyond_int64_are_refused():
    with pytest.raises(ValueError, match="int64"):
        FiniteScalarQuantizer((1000,) * 7)


def test_coarse_levels_warn():
    with pytest.warns(UserWarning, match="below 5"):
        FiniteScalarQuantizer((8, 4))


def test_a_latent_of_other_width_is_refused():
    with pytest.raises(ValueError, match="2 channels"):
        FiniteScalarQuantizer((8, 5)).quantize(torch.zeros(1, 3, 2, 2, 2))


def test_the_state_of_other_levels_does_not_load():
    state = FiniteScalarQuantizer((8, 5)).state_dict()
    with pytest.raises(RuntimeError, match=r"levels: expected \[5, 8\], got \[8, 5\]"):
        FiniteScalarQuantizer((5, 8)).load_state_dict(state)


def test_it_agrees_with_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch").FSQ([8, 8, 8, 6, 5], channel_first=True)
    z = torch.randn(1, 5, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    codes, tokens = FiniteScalarQuantizer((8, 8, 8, 6, 5))(z)
    theirs, indices = peer(z)
    torch.testing.assert_close(codes, theirs)
    assert torch.equal(tokens, indices.long())
