"""Tensors of the pretend device, and what each operator may be given of them."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import prod9

PACKAGE = f"{Path(prod9.__file__).parent}{os.sep}"
aten = torch.ops.aten
CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
_WAITING = {
    aten._local_scalar_dense.default: "item",  # also float, int, bool, and a tensor in an `if`
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "item",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten._linalg_eigh.default: "eigh",
    aten._linalg_svd.default: "svd",
}
"""Operators whose result, or its size, the host has to know before it can go on."""
_INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
_COPYING = {aten._to_copy.default, aten.copy_.default}


class MixedDevicesError(RuntimeError):
    """Tensors of both devices met in an operator that takes one device."""


class PretendTensor(Tensor):
    """Values on the CPU, in ``held``, that claim to be on ``cuda:0``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "PretendTensor":
        held = held.held if isinstance(held, PretendTensor) else held
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CPU,  # autograd has no engine for a device that is not there
            requires_grad=requires_grad,
        )
        made.held = held.detach()
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        note("tolist")
        return self.held.tolist()

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return to_host(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = PretendTensor(self.held.clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # files hold no devices here

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def to_host(tensor: Tensor) -> Tensor:
    """Return the values of ``tensor`` on the CPU; the gradient goes back to it."""
    return _Down.apply(tensor)  # type: ignore[no-any-return]


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        note("copy to the host")
        return tensor.held.clone() if isinstance(tensor, PretendTensor) else tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return PretendTensor(gradient)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return PretendTensor(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.held if isinstance(gradient, PretendTensor) else gradient


def to_device(tensor: Tensor) -> Tensor:
    """Return a copy of ``tensor`` on the pretend device; the gradient goes back to it."""
    return _Up.apply(tensor)  # type: ignore[no-any-return]


# -- what is counted ------------------------------------------------------------------------------------

_counters: list[Counter[str]] = []
_TESTS = "a test"


def note(what: str) -> None:
    """Count that the host waits, by the innermost function of prod9 and ``what`` makes it wait; not in tests."""
    place = caller()
    for counter in _counters:
        if place != _TESTS:
            counter[f"{place}: {what}"] += 1


def caller() -> str:
    """Return ``module.function`` of the innermost frame in prod9, or where else the call comes from."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            return f"{Path(path).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return _TESTS


class Counting(TorchDispatchMode):
    """Sends every operator through :func:`dispatch`, and counts waits in ``counter``."""

    def __init__(self, counter: Counter[str]) -> None:
        super().__init__()
        self.counter = counter

    def __enter__(self) -> Any:
        _counters.append(self.counter)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _counters.remove(self.counter)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


_calls: list[bool] = []


@contextmanager
def inside(*, on_device: bool) -> Iterator[None]:
    """Run one function of torch. on_device: whether what it makes by itself, without being told, is on the device."""
    _calls.append(on_device)
    try:
        yield
    finally:
        _calls.pop()


# -- operators ------------------------------------------------------------------------------------------


def is_cuda(device: Any) -> bool:
    """Return whether ``device`` names the pretend device; None does not."""
    return device is not None and torch.device(device).type == "cuda"


def held(value: Any) -> Any:
    """Return what a tensor of the device holds, anything else as it is."""
    return value.held if isinstance(value, PretendTensor) else value


def wrapped(value: Any) -> Any:
    """Return a tensor as one of the device, anything else as it is."""
    return (
        PretendTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendTensor) else value
    )


def leaves(value: Any) -> Iterator[Any]:
    """Yield what lists, tuples and dictionaries hold; those of torch's own trees take half of the time of a test."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return ``value`` with every leaf changed."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_mapped(change, part) for part in value])
    if kind is dict:
        return {key: _mapped(change, part) for key, part in value.items()}
    return change(value)


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``func`` on the values held; refuse what CUDA refuses and note what it waits for."""
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if on_device:
        _refuse_mixed(func, args, tensors)
        _note_waits(func, args)
    result_on_device = on_device
    if torch.device(kwargs.get("device") or CPU).type in ("cpu", "cuda") and kwargs.get("device") is not None:
        # Formulas of derivatives ask for tensors where autograd believes that all are.
        result_on_device = is_cuda(kwargs["device"]) or (bool(_calls) and _calls[-1])
        kwargs = {**kwargs, "device": CPU}
    if func in _COPYING:
        _note_copies(func, args, kwargs, result_on_device)
        result_on_device = result_on_device if func is aten._to_copy.default else on_device
    kwargs.pop("pin_memory", None)
    out = func(*_mapped(held, args), **_mapped(held, kwargs))
    if func._schema.is_mutable:
        owners = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
        return _mapped(lambda value: owners.get(id(value), wrapped(value) if on_device else value), out)
    if not result_on_device or func is aten._local_scalar_dense.default:
        return out
    return _mapped(wrapped, out)


def _refuse_mixed(func: Any, args: Any, tensors: list[Tensor]) -> None:
    # CUDA takes numbers of the host, tensors without axes, anywhere.
    foreign = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
    if not foreign or func in _COPYING:
        return
    if (
        func in _INDEXING
        and isinstance(args[0], PretendTensor)
        and all(tensor is not args[0] for tensor in foreign)
    ):
        note("index of the host")  # accepted, and copied first
        return
    raise MixedDevicesError(
        f"Expected all tensors to be on the same device, got cuda:0 and cpu in {func} at {caller()}"
    )


def _note_waits(func: Any, args: Any) -> None:
    if func in _WAITING:
        note(_WAITING[func])
    if func in _INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
        note("mask as index")


def _note_copies(func: Any, args: Any, kwargs: dict[str, Any], to_cuda: bool) -> None:
    if func is aten.copy_.default:
        ours, theirs = (isinstance(value, PretendTensor) for value in args[:2])
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if ours != theirs and waits:
            note("copy to the device" if ours else "copy to the host")
        return
    if (
        isinstance(args[0], PretendTensor) != to_cuda
        and "device" in kwargs
        and not kwargs.get("non_blocking")
    ):
        note("copy to the device" if to_cuda else "copy to the host")
