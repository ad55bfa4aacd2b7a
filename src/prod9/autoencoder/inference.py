"""Encoding and decoding of volumes of any size, whole or in overlapping windows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.checks import require_choice
from prod9.autoencoder.exact import KEEP_DTYPES, ExactRunner
from prod9.autoencoder.padding import crop, pad_to_multiple
from prod9.types import AutoencoderOutput, Latent, TokenGrid, Volume, VolumeOut

MODES = {"gaussian": "gaussian", "constant": "constant", "mean": "constant"}
STRATEGIES = ("whole", "sliding_window", "exact")


@dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig:
    """How a volume is cut into windows, or into slabs.

    Attributes:
        roi_size: sides of a window in voxels, multiples of the network's downsampling factor.
        overlap: share of a window in [0, 1) that the next window covers too, at least.
        sw_batch_size: windows per pass.
        mode: ``gaussian`` weighs the middle of a window more, ``constant`` (alias ``mean``) all of it equally.
        strategy: ``whole`` makes one pass; ``sliding_window`` approximates it at bounded memory; ``exact`` computes
            it layer by layer over slabs whose activations are kept on the CPU.
        num_slabs: number of slabs of ``exact``.
        keep_dtype: ``float32`` or ``bfloat16``, type of the kept activations of ``exact``.
        max_attention_tokens: ``exact`` refuses attention over more positions.
    """

    roi_size: tuple[int, int, int] = (64, 64, 64)
    overlap: float = 0.5
    sw_batch_size: int = 1
    mode: str = "gaussian"
    strategy: str = "sliding_window"
    num_slabs: int = 32
    keep_dtype: str = "float32"
    max_attention_tokens: int = 32768

    def __post_init__(self) -> None:
        if len(self.roi_size) != 3 or min(self.roi_size) < 1:
            raise ValueError(
                f"roi_size: expected three positive sides, got {self.roi_size}; use for example 64"
            )
        if not 0.0 <= self.overlap < 1.0:
            raise ValueError(f"overlap: expected a share in [0, 1), got {self.overlap}; use for example 0.5")
        for name in ("sw_batch_size", "num_slabs", "max_attention_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}; use 1 or more")
        for name, known in (("mode", MODES), ("strategy", STRATEGIES), ("keep_dtype", KEEP_DTYPES)):
            require_choice(name, getattr(self, name), known)


class AutoencoderInferenceWrapper(nn.Module):
    """An autoencoder of either family for volumes of any size, without gradients.

    Volumes are padded with background to multiples of the downsampling factor, and reconstructions are cropped
    back. Windows start at multiples of the factor, so that the latent grids of neighbours coincide. The latent is
    blended in float32 and quantised once, since a mean of codes is no code; deviations are blended as variances.
    Windows are an approximation, since their group statistics differ from those of the whole volume; ``whole`` and
    ``exact`` are none.

    Raises:
        ValueError: for a ``roi_size`` that is no multiple of the downsampling factor.

    Example:
        >>> import torch
        >>> from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
        >>> from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig
        >>> network = AutoencoderFSQ(levels=[8, 5], num_channels=[8, 8], num_res_blocks=[1, 1], norm_num_groups=4)
        >>> wrapper = AutoencoderInferenceWrapper(network.eval(), SlidingWindowConfig(roi_size=(8, 8, 8)))
        >>> output = wrapper(torch.rand(1, 1, 11, 8, 8))  # padded to 12 voxels, and cut back
        >>> tuple(output.tokens.shape), tuple(output.reconstruction.shape)
        ((1, 6, 4, 4), (1, 1, 11, 8, 8))
    """

    def __init__(self, autoencoder: AutoencoderFSQ | AutoencoderKlMaisi, config: SlidingWindowConfig) -> None:
        super().__init__()
        factor = autoencoder.downsampling_factor
        if config.strategy == "sliding_window" and any(side % factor for side in config.roi_size):
            fit = tuple(max(factor, side // factor * factor) for side in config.roi_size)
            raise ValueError(f"roi_size: expected multiples of {factor}, got {config.roi_size}; use {fit}")
        self.autoencoder = autoencoder
        self.config = config

    @torch.no_grad()
    def encode(self, x: Volume) -> tuple[Latent, Latent]:
        """Return ``(z_mu, z_sigma)`` of equal shape, z_sigma a deviation.

        For FSQ z_mu is z before quantisation and z_sigma is zero.
        """
        network = self.autoencoder
        x = pad_to_multiple(x.float(), network.downsampling_factor)
        if isinstance(network, AutoencoderKlMaisi):
            z_mu, variance = self._map(lambda window: _moments(network, window), x, 1).chunk(2, 1)
            return z_mu, variance.sqrt()
        z = self._map(network.encode, x, 1)
        return z, torch.zeros_like(z)

    @torch.no_grad()
    def quantize_stage_2_inputs(self, x: Volume) -> TokenGrid:
        """Return the tokens of ``x``, one for each cube of voxels with side ``downsampling_factor``."""
        network = self.tokenizer
        return network.embed(network.quantize(self.encode(x)[0]))

    @torch.no_grad()
    def decode(self, latent: Latent) -> VolumeOut:
        """Return the float32 volume of codes or z, ``downsampling_factor`` times as long on each side.

        Of label maps, logits are blended: the mean of two class numbers is a third class.
        """
        network, latent = self.autoencoder, latent.float()
        if isinstance(network, AutoencoderFSQ):
            return network.likeliest(self._map(network.decode_values, latent, network.downsampling_factor))
        return self._map(network.decode, latent, network.downsampling_factor)

    @torch.no_grad()
    def decode_tokens(self, tokens: TokenGrid) -> VolumeOut:
        """Return the float32 volume of ``tokens``."""
        return self.decode(self.tokenizer.indices_to_codes(tokens))

    @torch.no_grad()
    def forward(self, x: Volume) -> AutoencoderOutput:
        """Encode, quantise once (KL: take the mean), decode; the reconstruction has the sides of ``x``."""
        z, z_sigma = self.encode(x)
        if isinstance(self.autoencoder, AutoencoderKlMaisi):
            return AutoencoderOutput(crop(self.decode(z), x.shape[2:]), z, z, z_sigma)
        codes = self.autoencoder.quantize(z)
        volume = crop(self.decode(codes), x.shape[2:])
        return AutoencoderOutput(volume, codes, z, None, self.autoencoder.embed(codes))

    @property
    def tokenizer(self) -> AutoencoderFSQ:
        """The network; ValueError for one with a continuous latent, which has no tokens."""
        if not isinstance(self.autoencoder, AutoencoderFSQ):
            raise ValueError(
                f"autoencoder: expected an AutoencoderFSQ, got {type(self.autoencoder).__name__}, which has no "
                "tokens; use encode and decode"
            )
        return self.autoencoder

    def _map(self, network: Callable[[Tensor], Tensor], values: Tensor, shrink: int) -> Tensor:
        """Apply ``network`` whole, in slabs or window by window; windows are ``roi_size / shrink`` long."""
        if self.config.strategy == "exact":
            runner = ExactRunner(
                num_slabs=self.config.num_slabs,
                keep_dtype=self.config.keep_dtype,
                max_attention_tokens=self.config.max_attention_tokens,
            )
            with self.autoencoder.run_by(runner):
                return network(values).float()
        sides = values.shape[2:]
        roi = tuple(min(side // shrink, s) for side, s in zip(self.config.roi_size, sides, strict=True))
        if self.config.strategy == "whole" or roi == tuple(sides):
            return network(values).float()
        unit = self.autoencoder.downsampling_factor // shrink
        inferer = SlidingWindowInferer(
            roi_size=roi,
            sw_batch_size=self.config.sw_batch_size,
            overlap=tuple(_overlap(side, self.config.overlap, unit) for side in roi),
            mode=MODES[self.config.mode],
        )
        blended = inferer(values, network)
        assert isinstance(blended, Tensor)  # one output, so the inferer returns no tuple
        return blended


def _moments(network: AutoencoderKlMaisi, x: Tensor) -> Tensor:
    """Return z_mu and the variance, which can be blended over windows: ``[B 2Z h w d]``."""
    z_mu, z_sigma = network.encode(x)
    return torch.cat([z_mu, z_sigma.square()], 1)


def _overlap(side: int, overlap: float, unit: int) -> float:
    """Return the share for which MONAI's stride, int(side · (1 − share)), is a multiple of ``unit``.

    The stride is rounded down, so that windows overlap by at least ``overlap``. Half a voxel is taken off the share:
    without that, MONAI's truncation could cost a voxel.
    """
    stride = max(unit, int(side * (1 - overlap)) // unit * unit)
    return max(0.0, 1 - (stride + 0.5) / side)
