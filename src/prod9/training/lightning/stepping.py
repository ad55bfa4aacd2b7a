"""What a training step needs of gradients, and the compilation of networks before the first one."""

import shutil
import sys
from typing import Any

import torch
from torch import Tensor, nn

from prod9.errors import ConfigError
from prod9.training.sharding import whole


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the step is skipped."""


def gradient_norm(optimizer: Any, loss: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the norm of the gradients of ``optimizer``, and whether it and ``loss`` are finite, both on the device."""
    gradients = [p.grad for p in with_gradient(optimizer) if p.grad is not None]
    # whole: of sharded gradients, the norm over all shards.
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    return norm, norm.isfinite() if loss is None else norm.isfinite() & loss.detach().isfinite()


def with_gradient(optimizer: Any) -> list[nn.Parameter]:
    """Return the parameters of ``optimizer`` that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def compile_network(network: nn.Module) -> None:
    """Compile ``network`` in place, keeping its parameter names; ConfigError where that cannot work."""
    compilers = ("g++", "clang++", "c++", "cl")
    if sys.platform == "win32" or not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"training.compile: expected a C++ compiler ({', '.join(compilers)}), got none on this system; "
            "install one, or set training.compile to false."
        )
    network.compile()
