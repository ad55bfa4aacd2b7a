"""The pretend device itself: it says what it should, refuses what a GPU refuses, and counts what a GPU waits for."""

import copy

import pytest
import torch
from torch import nn

from prod9.host_copies import computed, host_generator, is_known, on_host, placed, positions, with_host_copy
from tests.pretend import MixedDevicesError, PretendTensor, pretend_cuda
from tests.pretend.tensors import PACKAGE


@pytest.fixture
def device():
    with pretend_cuda() as device:
        yield device


def prod9_calls(function):
    """Call ``function`` as if prod9 did: what tests themselves wait for is not counted."""
    space = {"function": function}
    source = "def called():\n    return function()\n"
    exec(compile(source, f"{PACKAGE}module.py", "exec"), space)
    return space["called"]()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(3).to("cuda"),
        lambda: torch.rand(3).to(torch.device("cuda", 0)),
        lambda: torch.rand(3).cuda(),
        lambda: torch.zeros(3, device="cuda"),
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: torch.arange(3, device="cuda") + 1,
        lambda: torch.rand(3, generator=torch.Generator("cuda").manual_seed(0), device="cuda"),
        lambda: torch.rand(3).to(torch.zeros(1, device="cuda")),
        lambda: torch.zeros(3, device="cuda").new_zeros(2),
    ],
)
def test_what_is_made_on_the_device_is_there(device, make):
    made = make()
    assert isinstance(made, PretendTensor)
    assert made.device == torch.device("cuda", 0)
    assert made.is_cuda
    assert not made.cpu().is_cuda


def test_devices_do_not_mix(device):
    there, here = torch.rand(3, device="cuda"), torch.rand(3)
    with pytest.raises(MixedDevicesError, match=r"same device, got cuda:0 and cpu in aten.add.Tensor"):
        there + here
    with pytest.raises(MixedDevicesError):
        here[torch.tensor([0], device="cuda")]
    assert (there + torch.tensor(1.0)).is_cuda  # numbers may come from anywhere
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.rand(3, generator=torch.Generator(), device="cuda")
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.rand(3, generator=torch.Generator("cuda"))
    with pytest.raises(RuntimeError, match="generator"):
        torch.empty(3).normal_(generator=torch.Generator("cuda"))


def test_gradients_are_those_of_the_cpu_and_on_the_device(device):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2))
    x = torch.rand(3, 4)
    network(x).square().sum().backward()
    wanted = [parameter.grad for parameter in network.parameters()]
    moved = copy.deepcopy(network)
    moved.zero_grad()
    moved.to("cuda")
    moved(x.to("cuda")).square().sum().backward()
    for parameter, gradient in zip(moved.parameters(), wanted, strict=True):
        assert parameter.grad.is_cuda
        assert torch.equal(parameter.grad.cpu(), gradient)


@pytest.mark.parametrize(
    ("wait", "reason"),
    [
        (lambda x: bool(x.any()), "item"),
        (lambda x: x[x > 0.5], "mask as index"),
        (lambda x: (x > 0.5).nonzero(), "nonzero"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x[torch.tensor([0])], "index of the host"),
        (lambda x: torch.rand(2).to("cuda"), "copy to the device"),
        (lambda x: torch.tensor([1], device="cuda"), "values of the host"),
    ],
)
def test_what_waits_is_counted_with_its_place(device, wait, reason):
    x = torch.rand(4, device="cuda")
    with device.counted() as waits:
        prod9_calls(lambda: wait(x))
    assert waits == {f"module.called: {reason}": 1}


def test_what_does_not_wait_is_not_counted(device):
    x = torch.rand(4, device="cuda")
    with device.counted() as waits:
        prod9_calls(lambda: torch.where(x > 0.5, x, 0.0).sum())
        prod9_calls(lambda: torch.rand(2).to("cuda", non_blocking=True))
        prod9_calls(lambda: nn.functional.one_hot(x.long(), 3))
    assert not waits


# -- what the host knows --------------------------------------------------------------------------------


def test_the_host_knows_what_it_has_sent(device):
    flags = torch.tensor([True, False, True])
    with device.counted() as waits:
        there = prod9_calls(lambda: placed(flags, "cuda"))
        turned = prod9_calls(lambda: computed(torch.logical_not, there))
        assert prod9_calls(lambda: on_host(turned)).tolist() == [False, True, False]
        assert prod9_calls(lambda: positions(there, 2)).cpu().tolist() == [0, 2]
    assert not waits
    assert is_known(turned)
    unknown = there & there
    assert not is_known(unknown)
    assert on_host(unknown).tolist() == flags.tolist()
    assert with_host_copy(unknown, flags) is unknown
    assert is_known(unknown)


def test_on_a_cpu_nothing_is_another(device):
    values, generator = torch.rand(3), torch.Generator()
    assert placed(values, "cpu") is values
    assert on_host(values) is values
    assert host_generator(generator) is generator


def test_the_host_draws_on_beside_the_device(device):
    def draws(seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        return [torch.rand(3, generator=host_generator(generator)).tolist() for _ in range(2)]

    first, second = draws(0)
    assert first != second
    assert draws(0) == [first, second]
    assert draws(1) != [first, second]
    assert torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist() != first
