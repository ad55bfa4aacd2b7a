"""Counts where a program waits for its device, on a machine without one: the operations that would."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_WAITING = {
    aten._local_scalar_dense.default,  # item, float, int, bool, a tensor in an `if`
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
}
_BY_MASK = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_ON_CPU_ONLY = {
    "_check",  # torch's optimizers
    "require_below",
    "_refuse_non_finite",
    "_facts",  # one_hot looks at its classes on the CPU
    "_positions",  # asks for nothing on CUDA
    "<dictcomp>",  # schedules are
    "times",  # made on the CPU
}
"""Functions that look at values on the CPU and need not wait on a GPU."""


def caller() -> str:
    """Return ``module.function`` of the innermost frame in prod9; nothing of what only CPUs are asked."""
    stack = traceback.extract_stack()
    if any("/torch/optim/" in frame.filename for frame in stack):
        return "cpu._check"  # optimizers count steps on the CPU
    for frame in reversed(stack):
        if "/prod9/" in frame.filename and "site-packages" not in frame.filename:
            return f"{frame.filename.rsplit('/', 1)[1].removesuffix('.py')}.{frame.name}"
    return "elsewhere"


class _Mode(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func in _BY_MASK and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if func in _WAITING or masks:
            self.found[caller()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Count, by function of prod9, what would wait for a GPU inside the context."""
    found: Counter[str] = Counter()
    to_list, to_cpu = Tensor.tolist, Tensor.cpu

    def tolist(self: Tensor) -> Any:
        found[caller()] += 1
        return to_list(self)

    def cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found[caller()] += 1
        return to_cpu(self, *args, **kwargs)

    Tensor.tolist, Tensor.cpu = tolist, cpu  # type: ignore[method-assign]
    try:
        with _Mode(found):
            yield found
    finally:
        Tensor.tolist, Tensor.cpu = to_list, to_cpu  # type: ignore[method-assign]
        for name in list(found):
            if name.rpartition(".")[2] in _ON_CPU_ONLY:
                del found[name]
