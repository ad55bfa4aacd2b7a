"""What turns volumes into the tokens or latents of a store: a trained autoencoder, in this process or in several."""

import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import SlidingWindowSection
from prod9.data.stores.latents import Encode, Encoded
from prod9.models.checkpoint_manager import CheckpointManager, Loaded
from prod9.models.factory import ModelFactory
from prod9.system import machine
from prod9.system.stopping import SIGNALS

Arrays = tuple[np.ndarray, np.ndarray | None]
"""Latents and tokens."""


def build_encode(
    upstream: Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi],
    window: SlidingWindowSection,
    *,
    device: torch.device | str,
) -> Encode:
    """Return what encodes volumes with ``upstream`` on ``device``: z and tokens (FSQ), or the mean of z (KL)."""
    network = upstream.network
    wrapper = ModelFactory.create_inference_wrapper(network, window)

    @torch.no_grad()
    def encode(volumes: Tensor) -> Encoded:
        # An adapter may hold the same network and have moved it.
        z, _ = wrapper.to(device).encode(volumes.to(device))
        if isinstance(network, AutoencoderFSQ):
            return Encoded(z, network.embed(network.quantize(z)))
        return Encoded(z)

    return encode


class EncoderPool:
    """The same in one process a device: calls return at once with a future, so that all of them work.

    upstream: its file is loaded anew by each process, which starts at the first use. window: how they encode.
    devices: of the processes; naming one twice gives it two. Use as a context, whose end stops them.
    """

    def __init__(
        self,
        upstream: Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi],
        window: SlidingWindowSection,
        *,
        devices: Sequence[str],
    ) -> None:
        if not devices:
            raise ValueError("Expected at least one device, got none.")
        threads = max(1, machine.cores() // len(devices))
        start = get_context("spawn")  # a forked process cannot use CUDA
        path, stage = str(upstream.path), upstream.header["stage"]
        self._pools = [
            ProcessPoolExecutor(
                1,
                mp_context=start,
                initializer=_start,
                initargs=(path, stage, window.model_dump(), device, threads),
            )
            for device in devices
        ]
        self._turn = cycle(self._pools)
        self.num_ahead = 2 * len(devices)

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the processes; what is waiting is dropped."""
        for pool in self._pools:
            pool.shutdown(wait=error is None, cancel_futures=True)

    def submit(self, volumes: Tensor) -> "Future[Arrays]":
        """Let the next process encode ``volumes`` float32 [B 1 H W D]."""
        # Arrays go through a pipe; shared tensors would need a file descriptor each.
        return next(self._turn).submit(_encode, volumes.numpy())

    @staticmethod
    def result(future: "Future[Arrays]") -> Encoded:
        """Wait for what :meth:`submit` began; raises what the process raised."""
        latents, tokens = future.result()
        return Encoded(torch.from_numpy(latents), None if tokens is None else torch.from_numpy(tokens))


# -- in the processes -------------------------------------------------------------------------------

_state: dict[str, Encode] = {}


def _start(path: str, stage: Any, window: dict[str, Any], device: str, threads: int) -> None:
    # Signals reach the whole group; the first process keeps what is done and stops these.
    for signum in SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(threads)
    upstream = CheckpointManager.load_autoencoder(Path(path), stage=stage)
    _state["encode"] = build_encode(upstream, SlidingWindowSection(**window), device=device)


def _encode(volumes: np.ndarray) -> Arrays:
    encoded = _state["encode"](torch.from_numpy(volumes))
    tokens = encoded.tokens
    return encoded.latents.float().cpu().numpy(), None if tokens is None else tokens.cpu().numpy()
