"""The devices that ``--device`` may name. Commands import this before they need torch."""

from typing import TYPE_CHECKING

from prod9.errors import ConfigError

if TYPE_CHECKING:
    import torch


def torch_device(name: "str | torch.device") -> "torch.device":
    """Return the device ``name``, ``auto`` being the fastest; ConfigError if the machine does not have it."""
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: expected auto, cpu, mps, cuda or cuda:N, got {name!r}; use auto"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise no_such_gpu("--device", str(name))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device: expected an Apple GPU, got {name} on a machine without one; use auto")
    return device


def no_such_gpu(option: str, name: str) -> ConfigError:
    """Return the answer to an ``option`` that asks for a CUDA device ``name``, which this machine does not have."""
    import torch

    there = ", ".join(f"cuda:{k}" for k in range(torch.cuda.device_count())) or "none"
    return ConfigError(
        f"{option}: expected a CUDA device that PyTorch sees on this machine ({there}), got {name}; use auto or cpu"
    )
