"""Compares the weights of a file with their network before anything large is built."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod9.errors import CheckpointError, Prod9Error
from prod9.models.checkpoint_header import N, Opened

_DEPTHS = ("num_blocks", "num_control_blocks", "num_layers", "num_layers_d", "num_res_blocks", "depth")
"""Keys of an architecture that are numbers of layers."""
_LEAST = 4096
"""Numbers up to this are accepted, whatever the weights."""


def weights_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of ``state`` under ``prefix``, such as ``decoder.``, named as in the network itself."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def build_for(state: dict[str, Tensor], build: Callable[[], N], opened: Opened) -> N:
    """Return ``build()``, the network of the header of ``opened``, if its weights are those of ``state``.

    A header can name any size. So it is first compared with the number of weights in the file, then the network is
    built without memory and its weights are compared one by one. Raises CheckpointError.
    """
    _require_possible(opened.header["architecture"], state, opened.path)
    try:
        with torch.device("meta"):
            planned = build()
        _require_same_weights(planned, state, opened.path)
        return build()
    except Prod9Error:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{opened.path}: expected an architecture that can be built, got one that cannot ({text}); use another "
            "checkpoint of the run, or copy the file again."
        ) from error


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``network``; CheckpointError names missing, unexpected and misshapen weights."""
    _require_same_weights(network, state, path)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise _other_weights(network, path, " ".join(lines)[:400]) from error


def differences(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Return how names and shapes in ``state`` differ from the weights of ``network``, one text per weight."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not expected" for name in found if name not in wanted]
    return faults + [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]


def _require_same_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    faults = differences(network, state)
    if faults:
        raise _other_weights(network, path, f"{'; '.join(faults[:3])[:400]} ({len(faults)} differ).")


def _other_weights(network: nn.Module, path: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected the weights of {type(network).__name__}, got others: {detail} "
        "Use a checkpoint of the same architecture."
    )


def _require_possible(architecture: dict[str, Any], state: dict[str, Tensor], path: Path) -> None:
    """Refuse numbers that are too large for the weights in the file: a layer has a tensor, a channel a weight."""
    weights = sum(tensor.numel() for tensor in state.values())
    for key, number in _numbers(architecture):
        is_depth = key.split(".")[-1] in _DEPTHS
        most = len(state) if is_depth else max(weights, _LEAST)
        if number > most:
            raise CheckpointError(
                f"{path}: expected an architecture that fits its {len(state)} tensors of {weights} weights, got "
                f"{key} {str(number)[:20]}; use another checkpoint of the run, or copy the file again."
            )


def _numbers(value: Any, key: str = "architecture") -> Iterator[tuple[str, float]]:
    """Yield every number of nested plain values with its dotted key."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield key, abs(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, key)
