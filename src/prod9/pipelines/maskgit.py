"""From a class label to brain volumes: sample tokens, look up their codes, decode.

``MaskGiTPipeline.from_checkpoint`` needs a stage-2 run, checkpoint or export folder and nothing else: the
header names the stage-1 file by path and SHA-256, the sampler settings, the grid and its affine. Nothing here
trains, and nothing imports Lightning.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.schema import ContextConfig, RunConfig, TransformerConfig
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTSampler
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.models.checkpoint_manager import CheckpointManager, Loaded, Source, require_recorded, require_scans
from prod9.models.factory import ModelFactory
from prod9.pipelines.detail import BESIDE, DetailBase, DetailChoice, find_detail
from prod9.pipelines.labels import AbstractLabelPipeline, VolumeGrid
from prod9.pipelines.labels import GeneratedVolume as GeneratedVolume
from prod9.pipelines.labels import derived_seed as derived_seed
from prod9.pipelines.recorded import Overrides, config_of, grid_of, hash_of, weak_of
from prod9.system.progress import FineProgress, Share


class MaskGiTPipeline(AbstractLabelPipeline):
    """Label-conditional generation with a trained decoder and a trained FSQ autoencoder.

    Args:
        decoder: predicts tokens; put in evaluation mode and moved to ``device``.
        config: of the run, with the changes made to it; None for a label-conditional decoder without one.
        weak: the weaker decoder of the sampler's ``autoguidance_scale``; None where that is 0.
        others: see :class:`AbstractLabelPipeline`.

    Raises:
        ValueError: for a ``grid`` that is no multiple of the downsampling factor.
    """

    sampler: MaskGiTSampler
    shows_labels: ClassVar[bool] = False
    """Whether it is for models of label maps, or for those of scans."""

    def __init__(
        self,
        *,
        decoder: AbstractTokenDecoder,
        autoencoder: AutoencoderInferenceWrapper,
        sampler: MaskGiTSampler,
        device: str | torch.device = "cpu",
        sha256: dict[str, str] | None = None,
        config: TransformerConfig | None = None,
        weak: AbstractTokenDecoder | None = None,
        **volumes: Unpack[VolumeGrid],
    ) -> None:
        factor, grid = autoencoder.autoencoder.downsampling_factor, volumes["grid"]
        if any(side % factor for side in grid):
            raise ValueError(
                f"grid: expected a multiple of the downsampling factor {factor}, got {tuple(grid)}."
            )
        super().__init__(autoencoder=autoencoder, sampler=sampler, device=device, sha256=sha256, **volumes)
        self.decoder = decoder.to(self.device).eval()
        self.weak = None if weak is None else weak.to(self.device).eval()
        self.config = config
        self.kind = "label_conditional" if config is None else config.model.kind
        self.context = ContextConfig() if config is None else config.in_context
        self.token_grid = self.latent_grid
        self.lesions: list[dict[str, float]] = []
        self._loaded: tuple[Loaded[AbstractTokenDecoder], Loaded[AutoencoderFSQ]] | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "auto",
        autoencoder: Source | Loaded[AutoencoderFSQ] | None = None,
        overrides: Overrides = (),
        settings: RunConfig | None = None,
        detail: DetailChoice | None = BESIDE,
    ) -> Self:
        """Build from a stage-2 run folder, checkpoint file or export folder.

        Raises CheckpointError for a missing, damaged, foreign or replaced file, ConfigError for bad settings.

        Args:
            path: the model, or what was opened of it.
            device: where to compute; ``auto`` is the fastest that the machine has.
            autoencoder: where stage 1 is now, if it has moved, or the loaded stage 1; its hash is compared with
                the recorded one.
            overrides: changes to the recorded config, e.g. ``["sampler.steps=8", ("sampler.guidance_scale", 2.0)]``.
            settings: a checked config whose sampling sections are used instead of the recorded ones.
            detail: the detail flow that sharpens volumes; by default what lies beside the model or its autoencoder, if
                anything does, and None for none.
        """
        device = torch_device(device)
        loaded = CheckpointManager.load_transformer(path, device=device)
        stage1 = CheckpointManager.load_upstream(loaded, path=autoencoder, device=device)
        pipeline = cls._of_loaded(loaded, stage1, device, overrides, settings)
        pipeline.find_detail(detail, path)
        return pipeline

    def find_detail(self, choice: DetailChoice | None, *beside: Source, required: bool = True) -> None:
        """Sharpen volumes by the chosen detail flow, or by one that lies beside one of the models, if any does.

        required: refuse (ConfigError) steps and noise that are asked for where there is none.
        """
        if self._loaded is None or choice is None:
            return
        stage1 = self._loaded[1]
        base = DetailBase(
            stage="detail",
            key="autoencoder",
            sha256=stage1.sha256,
            beside=[*beside, stage1.path],
            label_map=self.label_map,
            scans=stage1.header["data"],
        )
        self.sharpen_with(find_detail(choice, base, self.device, required=required))

    @classmethod
    def _of_loaded(
        cls,
        loaded: Loaded[AbstractTokenDecoder],
        stage1: Loaded[AutoencoderFSQ],
        device: str | torch.device,
        overrides: Overrides,
        settings: RunConfig | None,
    ) -> Self:
        cls._require_kind(loaded, stage1)
        config = config_of(loaded, TransformerConfig, overrides=overrides, settings=settings)
        weak = weak_of(loaded, config, device)
        pipeline = cls(
            decoder=loaded.network,
            autoencoder=ModelFactory.create_inference_wrapper(stage1.network, config.sliding_window),
            sampler=ModelFactory.create_sampler(config.sampler, config.masking, autoguided=True),
            device=device,
            sha256={"transformer": loaded.sha256, "autoencoder": stage1.sha256, **hash_of(weak)},
            config=config,
            weak=None if weak is None else weak.network,
            **grid_of(loaded),
        )
        pipeline._loaded = loaded, stage1
        pipeline.know_covariates(config.covariates)
        pipeline.lesions = loaded.header["data"].get("lesions", [])
        return pipeline

    @classmethod
    def _require_kind(cls, loaded: Loaded[AbstractTokenDecoder], stage1: Loaded[AutoencoderFSQ]) -> None:
        if not cls.shows_labels:
            require_scans(loaded)
        elif not stage1.network.label_maps:
            raise ConfigError(
                f"{loaded.path}: expected a model of label maps, got one of scans; train one with the configs "
                "demo/masks_stage1 and demo/masks_stage2, or those of maskgit/brats/masks."
            )

    def as_base_of(self, control: Loaded[Any], settings: RunConfig) -> "MaskGiTPipeline":
        """Return a pipeline of the same networks with the sampling sections of ``settings``.

        Raises CheckpointError when ``control`` was trained on another transformer.
        """
        if self._loaded is None:
            raise ValueError(
                "transformer: expected a pipeline of a checkpoint; build it with from_checkpoint."
            )
        require_recorded(control, "transformer", self._loaded[0])
        pipeline = self._of_loaded(*self._loaded, self.device, (), settings)
        pipeline.sharpen_with(self.detail)
        return pipeline

    @property
    def loaded_autoencoder(self) -> Loaded[AutoencoderFSQ] | None:
        """The autoencoder as it was loaded, for other models on it; None where it came from no file."""
        return None if self._loaded is None else self._loaded[1]

    def generate(
        self,
        label: str | int,
        *,
        num_samples: int = 1,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: FineProgress | None = None,
        examples: torch.Tensor | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples as :meth:`AbstractLabelPipeline.generate` does; ConfigError for decoders that need sources.

        Args:
            examples: for a few-shot decoder, what :meth:`encode_examples` returned, ``[N Z h w d]`` of the label.
            others: see :meth:`prod9.pipelines.labels.AbstractLabelPipeline.generate`.
        """
        name = self.known_label(label)
        if self.kind != "label_conditional" and not self.is_few_shot:
            raise ConfigError(
                f"model: expected one of kind 'label_conditional' to generate from a label, got {self.kind!r}, which "
                "makes a modality from others; use `prod9 generate translate`, or name demo/label or a run of the "
                "stage2_label configs."
            )
        return self.volumes(
            partial(self.sample_label, self.label_map[name], examples=examples),
            name,
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            start=start,
            progress=progress,
        )

    @property
    def is_few_shot(self) -> bool:
        """Whether the decoder makes volumes from a label and examples of it, without any source."""
        return self.kind == "single_stream" and self.context.min_sources == 0

    @property
    def max_examples(self) -> int:
        """The most examples that the decoder was trained on."""
        return self.context.max_examples if self.is_few_shot else 0

    def encode_examples(self, volumes: Sequence[np.ndarray]) -> torch.Tensor | None:
        """Return latents ``[N Z h w d]`` of examples of one label, for :meth:`generate`; None without any.

        volumes: float32 ``[H W D]`` in [0, 1], on the grid. Raises ConfigError for more of them than the decoder was
        trained on.
        """
        if len(volumes) > self.max_examples:
            raise ConfigError(
                f"examples: expected at most {self.max_examples} examples, as in training, got {len(volumes)}; leave "
                "some out, or name a run of a stage2 config with context.max_examples and min_sources: 0."
            )
        return torch.stack([self.encode(volume) for volume in volumes]) if volumes else None

    @torch.inference_mode()
    def encode(self, volume: np.ndarray) -> torch.Tensor:
        """Return a volume on the grid as the decoder takes it: latent or codes, float32 ``[Z h w d]`` on the CPU.

        Raises ValueError for a volume of another grid.
        """
        x = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
        if tuple(x.shape[2:]) != self.grid:
            raise ValueError(
                f"volume: expected the model's grid {self.grid}, got {tuple(x.shape[2:])}; place it first."
            )
        z, _ = self.autoencoder.encode(x.to(self.device))
        as_codes = self.kind != "single_stream" or self.context.source == "codes"
        return (self.autoencoder.tokenizer.quantize(z) if as_codes else z)[0].cpu()

    @torch.inference_mode()
    def sample_tokens(
        self, condition: Any, *, seeds: Sequence[int], report: Share | None = None, **arguments: Any
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` for a condition of the decoder.

        Args:
            condition: of B samples.
            seeds: one per sample.
            report: called with the share done, up to 0.9: the rest of a volume's time is decoding.
            arguments: more of ``MaskGiTSampler.sample``, such as ``initial_tokens``, or, with a ``controlnet`` among
                them, of ``sample_with_controlnet``.
        """
        callback = None if report is None else lambda state: report(0.9 * state.step / state.steps)
        sample = self.sampler.sample_with_controlnet if "controlnet" in arguments else self.sampler.sample
        return sample(
            self.decoder,
            (len(seeds), *self.token_grid),
            condition.to(self.device),
            generator=[torch.Generator(self.device).manual_seed(s) for s in seeds],
            callback=callback,
            weak=self.weak,
            **arguments,
        )

    @torch.inference_mode()
    def decode_tokens(self, tokens: torch.Tensor) -> np.ndarray:
        """Return the volume of one token grid ``[1 h w d]``: float32 ``[H W D]`` in [0, 1]."""
        return self.decode_latent(self.autoencoder.tokenizer.indices_to_codes(tokens))

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

    def sample_label(
        self, label: int, seeds: Sequence[int], report: Share, examples: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return int64 tokens ``[B h w d]`` of the class ``label``.

        Args:
            label: the class.
            seeds: one for each sample.
            report: called with the share done.
            examples: as for :meth:`generate`.
        """
        labels = torch.full((len(seeds),), label, dtype=torch.int64)
        plain = MaskGiTCondition(labels, covariates=self.covariates_of(seeds))
        condition = self._from_examples(labels, examples) if self.is_few_shot else plain
        return self.sample_tokens(condition, seeds=seeds, report=report)

    def _from_examples(self, labels: torch.Tensor, examples: torch.Tensor | None) -> InContextCondition:
        if examples is None:
            examples = torch.zeros(0, len(self.autoencoder.tokenizer.levels), *self.token_grid)
        count = len(labels), len(examples)
        return InContextCondition(
            target_label=labels,
            source_labels=labels[:, None].expand(count),
            source_latents=examples.expand(len(labels), *examples.shape),
            co_registered=torch.zeros(count, dtype=torch.bool),
        )

    def decode_sample(self, sample: torch.Tensor) -> np.ndarray:
        """Return the volume of one token grid ``[1 h w d]``."""
        return self.decode_tokens(sample)
