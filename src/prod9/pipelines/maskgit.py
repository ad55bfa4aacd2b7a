"""From a class label to brain volumes: sample tokens, look up their codes, decode.

``MaskGiTPipeline.from_checkpoint`` needs a stage-2 run, checkpoint or export folder and nothing else: the
header names the stage-1 file by path and SHA-256, the sampler settings, the grid and its affine. Nothing here
trains, and nothing imports Lightning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.pipelines.placement import GridPlacement
from prod9.training.config import config_from_dict
from prod9.training.config_schema import TransformerConfig
from prod9.training.model.checkpoint_manager import CheckpointManager
from prod9.training.model.model_factory import ModelFactory

Progress = Callable[[float, int], None]
"""Called with the volumes done (a fraction while one is being sampled) and their total."""


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of one of many streams: 63 bits, unrelated for any two different arguments.

    Seeds of neighbouring volumes and labels are neighbouring numbers; used as they are, volumes of one index
    would share their noise over all labels. stream: numbers from 0.
    """
    # Their number goes first: SeedSequence ignores zeros at the end.
    sequence = np.random.SeedSequence([len(stream), seed, *stream])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class GeneratedVolume:
    """One sample. data: float32 ``[H W D]`` in [0, 1], RAS; affine: 4×4, voxel to mm.

    index: its number k among the samples of the label. seed: that of this very sample (the run's plus k), so
    that ``generate(label, num_samples=1, seed=volume.seed)`` draws it again.
    """

    data: np.ndarray
    affine: np.ndarray
    label: str
    index: int
    seed: int


class MaskGiTPipeline:
    """Label-conditional generation with a trained decoder and a trained FSQ autoencoder.

    grid: voxels ``(H, W, D)`` of what is generated, a multiple of the autoencoder's downsampling factor.
    affine: 4×4 of that grid. label_map: name to class label. sha256: of the stage-2 and stage-1 files, for
    the record. config: of the run, with the changes made to it. placement: brings files to the grid as in training;
    None where that is not known. Networks are put in evaluation mode and moved to ``device``.
    """

    def __init__(
        self,
        *,
        decoder: AbstractTokenDecoder,
        autoencoder: AutoencoderInferenceWrapper,
        sampler: MaskGiTSampler,
        label_map: dict[str, int],
        grid: tuple[int, int, int],
        affine: np.ndarray,
        device: str | torch.device = "cpu",
        sha256: dict[str, str] | None = None,
        config: TransformerConfig | None = None,
        placement: GridPlacement | None = None,
    ) -> None:
        factor = autoencoder.autoencoder.downsampling_factor
        if any(side % factor for side in grid):
            raise ValueError(
                f"grid must be a multiple of the downsampling factor {factor}, got {tuple(grid)}."
            )
        self.device = torch.device(device)
        self.decoder = decoder.to(self.device).eval()
        self.autoencoder = autoencoder.to(self.device).eval()
        self.sampler = sampler
        self.label_map = dict(label_map)
        self.grid = tuple(grid)
        self.affine = np.asarray(affine, dtype=np.float64)
        self.sha256 = dict(sha256 or {})
        self.config = config
        self.placement = placement
        self.token_grid = tuple(side // factor for side in grid)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        autoencoder: str | Path | None = None,
        overrides: Sequence[str | tuple[str, Any]] = (),
    ) -> "MaskGiTPipeline":
        """Build from a stage-2 run folder, checkpoint file or export folder.

        autoencoder: where stage 1 is now, if it has moved; its hash must still be the recorded one.
        overrides: changes to the recorded config as ``load_config`` takes them, for example
        ``["sampler.steps=8", ("sampler.guidance_scale", 2.0)]``. Raises CheckpointError for a missing,
        damaged, foreign or replaced file, ConfigError for bad settings.
        """
        loaded = CheckpointManager.load_transformer(path, device=device)
        config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
        # load_transformer checked the stage.
        assert isinstance(config, TransformerConfig)
        upstream = CheckpointManager.load_upstream(loaded, path=autoencoder, device=device)
        data = loaded.header["data"]
        return cls(
            decoder=loaded.network,
            autoencoder=ModelFactory.create_inference_wrapper(upstream.network, config.sliding_window),
            sampler=ModelFactory.create_sampler(config.sampler, config.masking),
            label_map=data["label_map"],
            grid=tuple(data["grid"]),
            affine=np.asarray(data["reference_affine"]),
            device=device,
            sha256={"transformer": loaded.sha256, "autoencoder": upstream.sha256},
            config=config,
            placement=GridPlacement.from_header(data),
        )

    @property
    def kind(self) -> str:
        """The kind of decoder: what its condition is."""
        return "label_conditional" if self.config is None else self.config.model.kind

    def label_names(self) -> list[str]:
        """Return the names that can be generated, in the order of their class labels."""
        return sorted(self.label_map, key=self.label_map.__getitem__)

    def generate(
        self,
        label: str | int,
        *,
        num_samples: int,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of ``label`` (its name or class label).

        Sample k draws from its own generator, seeded with ``derived_seed(seed + k, label)`` on the pipeline's
        device, and is decoded alone: it does not depend on ``batch_size``, ``start`` or the samples beside
        it, and sample k of another label shares nothing with it.
        """
        if self.kind != "label_conditional":
            raise ConfigError(
                f"expected a model of kind 'label_conditional' to generate from a label, got {self.kind!r}, which "
                "makes a modality from others: use `prod9 generate translate`, or name a run of the stage2_label "
                "configs."
            )
        name = self._label_name(label)
        if num_samples < 1 or batch_size < 1 or start < 0:
            raise ValueError(
                "num_samples and batch_size must be at least 1 and start at least 0, "
                f"got {num_samples}, {batch_size} and {start}."
            )
        return self._generate(name, range(start, start + num_samples), seed, batch_size, progress)

    def _generate(
        self, name: str, indices: range, seed: int, batch_size: int, progress: Progress | None
    ) -> Iterator[GeneratedVolume]:
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]

            def report(share: float, done: int = first, size: int = len(batch)) -> None:
                if progress is not None:
                    progress(done + share * size, len(indices))

            tokens = self._sample_label(self.label_map[name], [seed + k for k in batch], report)
            for position, index in enumerate(batch):
                # One volume at a time: decoding is where the memory goes, and a batch would not be faster.
                data = self.decode_tokens(tokens[position : position + 1])
                yield GeneratedVolume(data, self.affine.copy(), name, index, seed + index)
            report(1.0)

    @torch.inference_mode()
    def sample_tokens(
        self,
        condition: Any,
        *,
        seeds: Sequence[int],
        report: Callable[[float], None] | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` for a condition of the decoder, one seed a sample.

        report: called with the share done, up to 0.9: the rest of a volume's time is decoding. arguments: more
        of ``MaskGiTSampler.sample``, such as ``initial_tokens``, or, with a ``controlnet`` among them, of
        ``sample_with_controlnet``.
        """
        callback = None if report is None else lambda state: report(0.9 * state.step / state.steps)
        sample = self.sampler.sample_with_controlnet if "controlnet" in arguments else self.sampler.sample
        return sample(
            self.decoder,
            (len(seeds), *self.token_grid),
            condition.to(self.device),
            generator=[torch.Generator(self.device).manual_seed(s) for s in seeds],
            callback=callback,
            **arguments,
        )

    @torch.inference_mode()
    def decode_tokens(self, tokens: torch.Tensor) -> np.ndarray:
        """Return the volume of one token grid ``[1 h w d]``: float32 ``[H W D]`` in [0, 1]."""
        return self.decode_codes(self.autoencoder.tokenizer.indices_to_codes(tokens))

    @torch.inference_mode()
    def decode_codes(self, codes: torch.Tensor) -> np.ndarray:
        """Return the volume of codes ``[1 Z h w d]``, which may lie between those of tokens."""
        volume = self.autoencoder.decode(codes)[0, 0]
        return volume.float().clamp(0.0, 1.0).cpu().numpy()

    @torch.inference_mode()
    def expected_codes(self, condition: Any) -> torch.Tensor:
        """Return the mean codes ``[B Z h w d]`` of every token given the condition alone, all tokens hidden.

        Of all guesses they have the least squared error, and they are smoother than any sample.
        """
        condition = condition.to(self.device)
        shape = (len(condition), *self.token_grid)
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        hidden = torch.ones(shape, dtype=torch.bool, device=self.device)
        logits = self.decoder(tokens, hidden, self.decoder.prepare(condition))
        return logits.expected(self._digit_codes()).movedim(-1, 1)

    def _digit_codes(self) -> list[torch.Tensor]:
        """Return the code of each digit of each level."""
        tokenizer, stride, codes = self.autoencoder.tokenizer, 1, []
        for channel, level in enumerate(tokenizer.levels):
            tokens = torch.arange(level, device=self.device)[:, None, None, None] * stride
            codes.append(tokenizer.indices_to_codes(tokens)[:, channel, 0, 0, 0])
            stride *= level
        return codes

    def _sample_label(
        self, label: int, seeds: Sequence[int], report: Callable[[float], None]
    ) -> torch.Tensor:
        labels = torch.full((len(seeds),), label, dtype=torch.int64)
        drawn = [derived_seed(seed, label) for seed in seeds]
        return self.sample_tokens(MaskGiTCondition(labels), seeds=drawn, report=report)

    def _label_name(self, label: str | int) -> str:
        for name, value in self.label_map.items():
            if label in (name, value) and not isinstance(label, bool):
                return name
        known = ", ".join(f"{name} ({self.label_map[name]})" for name in self.label_names())
        raise ConfigError(f"Label: expected one of {known}, got {label!r}; the model knows no other.")
