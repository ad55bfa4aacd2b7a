"""Trained autoencoders that turn volumes into the tokens or latents of a store, in this process or in several."""

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
from prod9.config.schema import FSQModelConfig, SlidingWindowSection
from prod9.data.splits import Split
from prod9.data.stores.latents import Encode, Encoded, ParallelEncode
from prod9.models.checkpoint_manager import CheckpointManager, Loaded
from prod9.models.factory import ModelFactory
from prod9.system import machine
from prod9.system.processes import clean_context
from prod9.system.stopping import SIGNALS
from prod9.training.data.encoded import EncodedSource

Stage1 = Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi]
"""A trained autoencoder of either family."""
Arrays = tuple[np.ndarray, np.ndarray | None]
"""Latents and tokens."""


def encoded_source(
    base: Stage1,
    window: SlidingWindowSection,
    *,
    device: torch.device | str = "cpu",
    encode: ParallelEncode | None = None,
) -> EncodedSource:
    """Return ``base`` as data modules take it.

    Args:
        base: the autoencoder.
        window: how it encodes large volumes.
        device: where it encodes.
        encode: an :class:`EncoderPool` of ``base`` to encode with; None encodes in this process.
    """
    codes = None
    if isinstance(base.network, AutoencoderFSQ):
        # Loader processes look codes up on the CPU, wherever the network is.
        section = FSQModelConfig.model_validate(base.header["architecture"]["autoencoder"])
        codes = ModelFactory.create_quantizer(section).indices_to_codes
    return EncodedSource(
        encoder_hash=base.sha256,
        encode=encode or build_encode(base, window, device=device),
        indices_to_codes=codes,
        split=Split.from_dict(base.header["split"]),
    )


def build_encode(base: Stage1, window: SlidingWindowSection, *, device: torch.device | str) -> Encode:
    """Return a function that encodes volumes on ``device``: to z and tokens (FSQ), or to the mean of z (KL)."""
    network = base.network
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
    """Encodes in one process per device: calls return a future at once, so that all processes work at a time.

    A context manager, whose end stops the processes.

    Args:
        base: the autoencoder, whose file each process loads at its first use.
        window: how it encodes large volumes.
        devices: of the processes; a device named twice gets two.
    """

    def __init__(
        self,
        base: Stage1,
        window: SlidingWindowSection,
        *,
        devices: Sequence[str],
    ) -> None:
        if not devices:
            raise ValueError("devices: expected at least one, got none; name one.")
        threads = max(1, machine.cores() // len(devices))
        # A library that looks for GPUs while it is imported leaves a process whose children cannot use CUDA.
        start = clean_context(__name__) if set(devices) == {"cpu"} else get_context("spawn")
        path, stage = str(base.path), base.header["stage"]
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
        """Stop the processes; after an error, without waiting for what they encode."""
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
    # Signals reach the whole process group; the first process saves what is done and then stops these.
    for signum in SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(threads)
    base = CheckpointManager.load_autoencoder(Path(path), stage=stage)
    _state["encode"] = build_encode(base, SlidingWindowSection(**window), device=device)


def _encode(volumes: np.ndarray) -> Arrays:
    encoded = _state["encode"](torch.from_numpy(volumes))
    tokens = encoded.tokens
    return encoded.latents.float().cpu().numpy(), None if tokens is None else tokens.cpu().numpy()
