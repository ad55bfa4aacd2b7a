"""The pretend device as Python sees it: moves, factories, generators and autocast."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.pretend.tensors import (
    CPU,
    CUDA,
    Counting,
    PretendTensor,
    held,
    inside,
    is_cuda,
    leaves,
    note,
    to_device,
    to_host,
    wrapped,
)

_Generator = torch.Generator
_autocast = torch.autocast
_group = torch._C._group_tensors_by_device_and_dtype
_is_autocast_enabled = torch.is_autocast_enabled
_MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}
_ARGUMENTS: dict[str, Any] = {"device": None, "dtype": None, "non_blocking": False, "copy": False}
"""What ``Tensor.to`` takes, in this order."""
_FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray}


class Generator(_Generator):
    """A generator of the pretend device: it draws on the CPU, and says that it is elsewhere."""

    @property
    def device(self) -> torch.device:
        return CUDA


class _GeneratorType(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _Generator)

    def __call__(cls, device: Any = "cpu") -> Any:
        return Generator() if is_cuda(device) else _Generator(device)


class _AnyGenerator(metaclass=_GeneratorType):
    """Takes the place of ``torch.Generator``, for calls and for ``isinstance``."""


class _Function(TorchFunctionMode):
    """Brings tensors to the device and back, and lets generators draw only where they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.backward:
            with inside(on_device=True), self:  # what it calls in Python is to find the device too
                kwargs["grad_tensors"] = kwargs.pop("gradient", None)
                return torch.autograd.backward(*args, **kwargs)
        asked = kwargs.get("device")
        free = asked is None or is_cuda(asked)
        with inside(
            on_device=free and any(isinstance(leaf, PretendTensor) for leaf in leaves((args, kwargs)))
        ):
            return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _MOVES:
            return _moved(func, args, kwargs)
        if func in _FROM_VALUES and is_cuda(kwargs.get("device")):
            value = func(*args, **{**kwargs, "device": None if isinstance(args[0], PretendTensor) else CPU})
            if not isinstance(value, PretendTensor):
                note("values of the host")
            return wrapped(value)
        if isinstance(kwargs.get("generator"), _Generator):
            return _drawn(func, args, kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is nn.functional.one_hot and isinstance(args[0], PretendTensor):
            if len(args) + len(kwargs) < 2:
                note("number of classes")
            with inside(on_device=False):
                return wrapped(func(args[0].held, *args[1:], **kwargs))  # CUDA looks at no class
        if is_cuda(kwargs.get("device")):
            return _made(func, args, kwargs)
        return func(*args, **kwargs)


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what a factory makes, on the device."""
    out = func(*args, **{**kwargs, "device": CPU})
    made = wrapped(out.detach() if isinstance(out, Tensor) else out)
    return made.requires_grad_() if kwargs.get("requires_grad") else made


def _moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what ``Tensor.to``, ``cuda`` or ``cpu`` give, of either device."""
    tensor, rest = args[0], list(args[1:])
    if func is torch.Tensor.cpu:
        return to_host(tensor) if isinstance(tensor, PretendTensor) else func(*args, **kwargs)
    if func is torch.Tensor.cuda:
        rest = [CUDA]
    if rest and isinstance(rest[0], Tensor):
        rest = [rest[0].device, rest[0].dtype, *rest[1:]]
    named = {name: kwargs.pop(name, default) for name, default in _ARGUMENTS.items()}
    if rest and isinstance(rest[0], torch.dtype):
        rest.insert(0, named["device"])
    named.update(zip(_ARGUMENTS, rest, strict=False))
    device = named["device"]
    result = tensor
    if device is not None and is_cuda(device) != isinstance(tensor, PretendTensor):
        if is_cuda(device) and not named["non_blocking"]:
            note("copy to the device")
        result = to_device(tensor) if is_cuda(device) else to_host(tensor)
    elif device is not None and not is_cuda(device):
        kwargs["device"] = device  # the CPU, or torch's device without memory
    if named["dtype"] is None and not named["copy"] and not kwargs:
        return result
    dtype = result.dtype if named["dtype"] is None else named["dtype"]
    return torch.Tensor.to(result, dtype=dtype, copy=named["copy"], **kwargs)


def _drawn(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Draw with a generator, which has to be of the device of what is drawn."""
    generator = kwargs["generator"]
    filled = args[0] if args and isinstance(args[0], Tensor) else None
    target = (
        CUDA if isinstance(filled, PretendTensor) else CPU if filled is not None else kwargs.get("device")
    )
    ours = isinstance(generator, Generator)
    if is_cuda(target) != ours:
        raise RuntimeError(f"Expected a '{torch.device(target or 'cpu').type}' device type for generator but found "
                           f"'{generator.device.type}'")  # fmt: skip
    if not ours:
        return func(*args, **kwargs)
    if filled is None:
        return _made(func, args, kwargs)
    out = func(filled.held, *args[1:], **kwargs)
    return filled if out is filled.held else wrapped(out)


class _Autocast(_autocast):
    """Autocast for CUDA is that of the CPU here."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@dataclass(frozen=True)
class Device:
    """The pretend device while it is there. waits: how often the host waited, by function of prod9 and reason."""

    waits: Counter[str] = field(default_factory=Counter)
    name: str = "cuda:0"

    def bring(self, network: nn.Module) -> nn.Module:
        """Bring parameters and buffers of ``network`` to the device, in place, and return it."""
        with torch.no_grad():
            for module in network.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not isinstance(parameter, PretendTensor):
                        value = PretendTensor(parameter.detach())
                        module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = wrapped(buffer)
        return network

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Count from 0 inside of the context."""
        self.waits.clear()
        yield self.waits


def _without_gradient(self: Any) -> None:
    """Enter inference mode as ``no_grad`` does: tensors with values elsewhere count no versions of them."""
    self.before = torch.is_grad_enabled()
    if self.mode:
        torch._C._set_grad_enabled(False)


def _with_gradient_as_before(self: Any, *error: Any) -> None:
    torch._C._set_grad_enabled(self.before)


def _grouped(*args: Any) -> dict[Any, Any]:
    """Group tensors for optimizers and norms: torch would say that those of the device are on the CPU."""
    groups = _group(*args).items()
    return {(CUDA if isinstance(lists[0][0], PretendTensor) else on, dtype): (lists, where)
            for (on, dtype), (lists, where) in groups}  # fmt: skip


@contextmanager
def pretend_cuda() -> Iterator[Device]:
    """Let ``cuda:0`` exist inside of the context."""
    device = Device()
    move = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        target = kwargs.get("device", args[0] if args else None)
        if isinstance(target, (str, torch.device)) and is_cuda(target):
            device.bring(self)
            args, kwargs = args[1:], {k: v for k, v in kwargs.items() if k != "device"}
        return move(self, *args, **kwargs) if args or kwargs else self

    def enabled(device_type: str | None = None) -> bool:
        return _is_autocast_enabled("cpu" if device_type in (None, "cuda") else device_type)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", _AnyGenerator)
        patch.setattr(torch, "autocast", _Autocast)
        patch.setattr(torch.amp, "autocast", _Autocast)
        patch.setattr(torch, "is_autocast_enabled", enabled)
        patch.setattr(nn.Module, "to", to)
        patch.setattr(torch.inference_mode, "__enter__", _without_gradient)
        patch.setattr(torch.inference_mode, "__exit__", _with_gradient_as_before)
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
        with Counting(device.waits), _Function():
            yield device


def values(tensor: Tensor) -> Tensor:
    """Return what ``tensor`` holds, on the CPU, without waiting."""
    return held(tensor.detach())
