"""Operations and bytes of a step without doing it: tensors of real size that have no memory.

What is counted is the same on every machine: FLOPs, and the most bytes that all tensors together take, weights,
gradients, moments and activations. Workspaces of kernels and what the allocator keeps come on top. Masks count as full:
what is selected by one has the size of the whole, which is the most that a step may take.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from prod9.generator.single_stream import TransformerDecoderSingleStream

aten = torch.ops.aten
GIB = 1024**3


def _convolution(
    x: Any, weight: Any, bias: Any, padding: Any, stride: Any, dilation: Any, groups: int
) -> Any:
    """Convolve; oneDNN's own operator has no form without memory."""
    return aten.convolution.default(
        x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
    )


def _is_mask(indices: Any) -> bool:
    return indices[0] is not None and indices[0].dtype == torch.bool


def _selected(x: Any, indices: Any) -> Any:
    if not _is_mask(indices):
        return aten.index.Tensor(x, indices)
    return x.reshape(-1, *x.shape[indices[0].dim() :]).clone()


def _put(x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    return x if _is_mask(indices) else aten.index_put_.default(x, indices, values, accumulate)


def _places(mask: Any) -> Any:
    return mask.new_zeros(mask.numel(), mask.dim(), dtype=torch.int64)


_REPLACED = {
    aten.mkldnn_convolution.default: _convolution,
    aten.index.Tensor: _selected,
    aten.index_put_.default: _put,
    aten.nonzero.default: _places,
    aten.masked_select.default: lambda x, mask: _selected(x, [mask]),
}


class _Live(TorchDispatchMode):
    """Adds up the storages that exist; answers what a program asks of values that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.ranges: dict[int, range] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            dtype, known = args[0].dtype, self.ranges.get(args[0].untyped_storage()._cdata)
            if known is not None:  # a loss takes its axes from such a tensor
                return known[args[0].storage_offset()]
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        out = _REPLACED[func](*args, **kwargs) if func in _REPLACED else func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._keep(leaf.untyped_storage())
        if func.overloadpacket is aten.arange and all(isinstance(value, int) for value in args):
            self.ranges[out.untyped_storage()._cdata] = range(*args)
        return out

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)
        self.ranges.pop(key, None)


class _Operations(TorchDispatchMode):
    """Adds up floating-point operations. torch's own counter also follows modules, and what it keeps for that holds
    recomputed activations alive, a GiB of a control network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


class Counter:
    """What was counted so far: ``flops``, ``gib`` at most since :meth:`restart`."""

    def __init__(self, live: _Live, operations: _Operations) -> None:
        self._live, self._operations, self._before = live, operations, 0

    @property
    def flops(self) -> int:
        """Floating-point operations since :meth:`restart`."""
        return self._operations.total - self._before

    @property
    def gib(self) -> float:
        """The most memory of all tensors since :meth:`restart`."""
        return self._live.most / GIB

    def restart(self) -> float:
        """Count from here on, and return the GiB of what exists, which still exists."""
        self._before = self._operations.total
        self._live.most = self._live.now
        return self._live.now / GIB


@contextmanager
def counted() -> Iterator[Counter]:
    """Let all tensors be without memory inside of the context, networks included, and count."""
    operations, live = _Operations(), _Live()
    read, copy = TransformerDecoderSingleStream._lengths, torch.Tensor.__deepcopy__
    # The labels of the sources tell how many there are; without values, all of them.
    TransformerDecoderSingleStream._lengths = lambda _, condition, longest: [longest + 1] * len(condition)
    # torch copies a buffer through its storage, which is nowhere.
    torch.Tensor.__deepcopy__ = lambda tensor, memo: tensor.detach().clone()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), operations, live:
            yield Counter(live, operations)
    finally:
        TransformerDecoderSingleStream._lengths = read
        torch.Tensor.__deepcopy__ = copy


def channels_last(network: torch.nn.Module) -> None:
    """Lay out the weights as `to(memory_format=…)` does, which tensors without memory refuse."""
    for module in network.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.dim() == 5:
                laid = value.detach().contiguous(memory_format=torch.channels_last_3d)
                module._parameters[name] = torch.nn.Parameter(laid, value.requires_grad)
