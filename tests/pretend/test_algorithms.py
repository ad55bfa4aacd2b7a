"""Every network, training step and sampling run of ``tests.networks`` on the pretend device."""

import pytest
import torch

from tests.networks import examples, sampling_runs, training_steps
from tests.pretend import pretend_cuda
from tests.pretend.api import values


@pytest.mark.parametrize("name", examples())
def test_a_network_gives_the_numbers_of_the_cpu(name):
    torch.manual_seed(0)
    wanted = examples("cpu")[name]().call()
    with pretend_cuda():
        torch.manual_seed(0)
        example = examples("cuda")[name]()
        torch.manual_seed(0)
        outputs = example.call()
    if name == "kl":  # draws its latent
        return
    for output, expected in zip(outputs, wanted, strict=True):
        assert output.is_cuda
        torch.testing.assert_close(values(output), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", training_steps())
def test_losses_and_their_gradients_wait_for_nothing(name):
    with pretend_cuda() as device:
        step = training_steps("cuda")[name]()
        step()  # orders and tables are kept from then on
        with device.counted() as waits:
            step()
    assert not waits


@pytest.mark.parametrize("name", sampling_runs())
def test_a_sampling_run_waits_for_nothing(name):
    with pretend_cuda() as device:
        run = sampling_runs("cuda")[name]()
        run()
        with device.counted() as waits:
            run()
    assert not waits
