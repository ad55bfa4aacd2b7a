"""Float32 without TF32, whose mantissa of ten bits would change tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Compute convolutions and matrix products in full float32, without autocast, inside the context.

    CUDA's convolutions use TF32 by default, which changes 0.3% of the tokens; matrix products use it where
    `torch.set_float32_matmul_precision` or its successor says so. These settings hold for the whole process.
    """
    conv: Any = torch.backends.cudnn.conv  # pyrefly: ignore[missing-attribute]
    matmul: Any = torch.backends.cuda.matmul
    convolved, multiplied = conv.fp32_precision, matmul.fp32_precision
    # torch has an old and a new setting, and refuses to multiply where they differ: change the one that was used.
    asked = _legacy_precision() if multiplied == "tf32" else None
    conv.fp32_precision = "ieee"
    try:
        if asked is not None:
            torch.set_float32_matmul_precision("highest")
        elif multiplied == "tf32":
            matmul.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        conv.fp32_precision = convolved
        if asked is not None:
            torch.set_float32_matmul_precision(asked)
        elif multiplied == "tf32":
            matmul.fp32_precision = "tf32"


def _legacy_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the new setting only
        return None


def apply_in_full(last: nn.Module, heads: Sequence[nn.Module], h: Tensor) -> list[Tensor]:
    """Return the output of each of ``heads`` on ``last(h)``, in the dtype of ``h``."""
    if torch.compiler.is_compiling() and h.device.type != "cuda":
        with torch.autocast(h.device.type, enabled=False):
            return _apply(last, heads, h)
    return _apply_uncompiled(last, heads, h)  # its decorator loses the types


# Compiled code would run under the settings of a later time: these few layers stay uncompiled.
@torch.compiler.disable
def _apply_uncompiled(last: nn.Module, heads: Sequence[nn.Module], h: Tensor) -> list[Tensor]:
    with full_float32(h.device.type):
        return _apply(last, heads, h)


def _apply(last: nn.Module, heads: Sequence[nn.Module], h: Tensor) -> list[Tensor]:
    h = last(h)
    return [head(h) for head in heads]
