"""What is done for GPUs, as far as a machine without one can tell; ``benchmarks/gpu_suite.py`` tells the rest."""

import pytest
import torch
from torch import nn

from prod9.autoencoder.native.full_precision import full_float32
from prod9.autoencoder.native.norm import group_norm
from prod9.generator.orders import halton, halton_order
from prod9.training.trainer import use_tensor_cores
from tests.networks import Inputs, examples


@pytest.fixture
def settings():
    """Give back torch's settings of precision as they were."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    yield
    conv.fp32_precision, matmul.fp32_precision = before


# -- precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsq", "kl"])
def test_c_the_last_layers_before_the_latent_run_in_float32_in_full(name):
    network, seen = examples()[name]().network, {}
    heads = [network.quant_conv_mu, *([network.quant_conv_log_sigma] if name == "kl" else [])]
    for layer in (network.encoder.blocks[-1], *heads, network.decoder.blocks[0]):
        layer.register_forward_hook(
            lambda module, *_: seen.update({module: torch.backends.cudnn.conv.fp32_precision})
        )
    default = torch.backends.cudnn.conv.fp32_precision
    network(Inputs("cpu").volume)
    assert default != "ieee"
    assert all(seen[layer] == "ieee" for layer in (network.encoder.blocks[-1], *heads))
    assert seen[network.decoder.blocks[0]] == default


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("asked", ["legacy", "new", "neither"])
def test_c_precision_is_restored_however_it_was_asked_for(asked):
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    if asked == "legacy":
        torch.set_float32_matmul_precision("high")
    elif asked == "new":
        matmul.fp32_precision = "tf32"
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        with full_float32("cpu"):
            assert conv.fp32_precision == "ieee"
            assert matmul.fp32_precision != "tf32"
        assert (conv.fp32_precision, matmul.fp32_precision) == before
        if asked != "new":
            assert torch.get_float32_matmul_precision() == {"legacy": "high", "neither": "highest"}[asked]
    finally:
        if asked == "legacy":
            torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("settings")
def test_c_matrix_products_use_tf32_on_a_gpu_but_not_where_tokens_depend_on_it():
    before = torch.get_float32_matmul_precision()
    try:
        use_tensor_cores("cpu")
        assert torch.get_float32_matmul_precision() == before
        use_tensor_cores("gpu")
        assert torch.get_float32_matmul_precision() == "high"
        with full_float32("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
def test_c_group_norm_keeps_the_type_of_its_input_under_autocast(layout, dtype, silu):
    x = torch.rand(2, 8, 4, 4, 4).to(dtype, memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert group_norm(x, nn.GroupNorm(2, 8), silu=silu).dtype == dtype


# -- orders ---------------------------------------------------------------------------------------------


def test_c_halton_begins_where_it_did():
    grid = (3, 4, 5)
    for seed in range(5):
        start = int(torch.randint(60, (), generator=torch.Generator().manual_seed(seed)))
        order = halton(grid, torch.Generator().manual_seed(seed))
        assert torch.equal(order, torch.from_numpy(halton_order(grid)).roll(start))
