"""Memory for time: activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def call(block: Callable[..., Any], *arguments: Any, recompute: bool) -> Any:
    """Return ``block(*arguments)``, whose activations are kept unless ``recompute`` is set."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)
