"""TransformerDecoderSingleStream: translation in context, one sequence of sources and target."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prod9.autoencoder.checks import require_choice
from prod9.autoencoder.native.recompute import call
from prod9.generator.context import BlockContext, Buckets
from prod9.generator.modality_processor import PADDING, InContextCondition, ModalityProcessor
from prod9.generator.token_decoder import AbstractTokenDecoder, DecoderOptions, finish
from prod9.host_copies import on_host
from prod9.types import TokenGrid, TokenMask


@dataclass(frozen=True)
class PreparedContext:
    """What a TransformerDecoderSingleStream computes once per condition.

    blocks: with ``prefix`` attention the modulation, keys and values of each block; with ``full`` the
    modulation ``[B 1 6E]`` alone. final: ``[B 1 2E]``. aligned: ``[B n E]``, added to the target's input, or
    None. streams: for ``full`` attention the embedded context ``[b S E]`` of each of ``buckets``, else None.
    """

    blocks: tuple[BlockContext, ...] | tuple[Tensor, ...]
    final: Tensor
    aligned: Tensor | None
    buckets: Buckets
    streams: tuple[Tensor, ...] | None

    def __getitem__(self, samples: slice) -> "PreparedContext":
        buckets, parts = self.buckets.narrow(samples, self.final.device)
        streams = None
        if self.streams is not None:
            old = dict(zip(self.buckets.sizes, self.streams, strict=True))
            streams = tuple(old[size][parts[size]] for size in buckets.sizes)
        blocks: Any = tuple(block[samples] for block in self.blocks)
        aligned = None if self.aligned is None else self.aligned[samples]
        return PreparedContext(blocks, self.final[samples], aligned, buckets, streams)


class TransformerDecoderSingleStream(AbstractTokenDecoder):
    """Decoder whose context and target form one sequence, context first; each has its own projection.

    With ``prefix`` attention the context attends to itself and the target attends to all. Keys and values of the
    context are thus computed once per sample (``prepare``) and serve every step and both branches of guidance.
    With ``full`` attention the context attends to the target too, and everything is computed at every step.

    Args:
        num_classes: number of labels.
        attention: ``prefix`` or ``full``.
        aligned: see :class:`~prod9.generator.modality_processor.ModalityProcessor`.
        context_stride: its ``stride``.
        **options: see :class:`~prod9.generator.token_decoder.AbstractTokenDecoder`.

    Example:
        >>> import torch
        >>> from prod9.generator.modality_processor import InContextCondition
        >>> from prod9.generator.single_stream import TransformerDecoderSingleStream
        >>> decoder = TransformerDecoderSingleStream(levels=[8, 5], embed_dim=24, num_blocks=2, num_heads=2).eval()
        >>> sources = InContextCondition(torch.tensor([3]), torch.tensor([[0, 1]]), torch.rand(1, 2, 2, 4, 4, 4))
        >>> tokens = torch.zeros(1, 4, 4, 4).long()
        >>> tuple(decoder(tokens, tokens == 0, decoder.prepare(sources)).dense().shape)
        (1, 40, 4, 4, 4)
    """

    condition: ModalityProcessor

    def __init__(
        self,
        *,
        num_classes: int = 4,
        attention: str = "prefix",
        aligned: bool = True,
        context_stride: int = 1,
        **options: Unpack[DecoderOptions],
    ) -> None:
        processor = partial(
            ModalityProcessor,
            num_classes=num_classes,
            num_bands=options.get("num_bands"),
            aligned=aligned,
            stride=context_stride,
        )
        super().__init__(condition=processor, **options)
        require_choice("attention", attention, ("prefix", "full"))
        self.attention = attention

    def prepare(self, condition: InContextCondition) -> PreparedContext:
        """Return what depends on the condition alone, computed once per sample: the cache of the context."""
        context, _ = self.condition(condition)
        # The lengths decide shapes: this waits for the device where the host does not know the sources.
        buckets = Buckets.of(self._lengths(condition, context.shape[1] - 1), context.device)
        parts = zip(buckets.split(context), buckets.sizes, strict=True)
        streams = [part[:, :size].contiguous() for part, size in parts]
        embedded = F.silu(self.condition.modulator(condition))
        modulations = [block.modulate(embedded) for block in self.adaln_blocks]
        final, aligned = self.modulation(embedded), self.condition.aligned(condition)
        if self.attention == "full":
            return PreparedContext(tuple(modulations), final, aligned, buckets, tuple(streams))
        return PreparedContext(self._read(streams, modulations, buckets), final, aligned, buckets, None)

    def _lengths(self, condition: InContextCondition, longest: int) -> list[int]:
        """Return the length of each sample's context; longest: that of all its sources together."""
        labels, dropped = on_host(condition.source_labels), on_host(condition.is_dropped)
        counts = ((labels != PADDING) & ~dropped[:, None]).sum(1)
        return (counts * (longest // max(1, labels.shape[1])) + 1).tolist()

    def start_from(self, decoder: AbstractTokenDecoder) -> tuple[str, ...]:
        """Copy the weights of a label-conditional decoder of the same size; return the names of the other weights.

        Copied are the input and output of tokens, the blocks, and the embeddings of labels and of "no label". The
        layers for the sources are new; ``aligned`` starts at zero and adds nothing at first. Raises ValueError, without
        any change, where ``decoder`` lacks a tensor or has it with another shape.
        """
        own, other = self.state_dict(), decoder.state_dict()
        names = {name: name for name in own if not name.startswith("condition.")}
        names["condition.target.weight"] = "condition.label.weight"
        differ = [
            f"{name} {tuple(own[name].shape)}"
            for name, source in names.items()
            if source not in other or other[source].shape != own[name].shape
        ]
        if differ:
            raise ValueError(
                f"decoder: expected a label-conditional one of the same size, got one in which these of {len(names)} "
                f"tensors differ: {', '.join(differ[:3])}; use the same model and data.label_map, or start anew"
            )
        self.load_state_dict({name: other[source] for name, source in names.items()}, strict=False)
        if self.condition.aligned_weight is not None:
            nn.init.zeros_(self.condition.aligned_weight)
            nn.init.zeros_(self.condition.aligned_bias.weight)
        return tuple(name for name, _ in self.named_parameters() if name not in names)

    def features(
        self,
        tokens: TokenGrid,
        mask: TokenMask,
        prepared: PreparedContext,
        residuals: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Return the normalised hidden state of every position of the target, the input of the head.

        Args:
            tokens: int64 ``[B h w d]``.
            mask: bool ``[B h w d]``, True where a token is not known.
            prepared: what the condition gives, the same for all steps.
            residuals: of a control network, one for each block.
        """
        x = self.embed(tokens, mask)
        if prepared.aligned is not None:
            x = x + prepared.aligned.to(x.dtype)
        if prepared.streams is None:
            return finish(self.run_blocks(x, prepared.blocks, residuals), prepared.final)
        return finish(self._run_joint(x, prepared, prepared.streams, residuals), prepared.final)

    def sample(self, sampler: Any, shape: Sequence[int], condition: InContextCondition, **how: Any) -> Tensor:
        """Return tokens of ``shape`` (B, h, w, d) that ``sampler``, a MaskGiTSampler, draws with arguments ``how``."""
        return sampler.sample(self, shape, condition, **how)

    def _read(
        self, streams: Sequence[Tensor], modulations: Sequence[Tensor], buckets: Buckets
    ) -> tuple[BlockContext, ...]:
        """Pass the context of each bucket through the blocks; return keys and values of each block."""
        kept = []
        for i, (block, modulation) in enumerate(zip(self.adaln_blocks, modulations, strict=True)):
            given = buckets.split(modulation)
            if i + 1 == len(modulations):
                # After the last block the context itself is not needed.
                keys, values = zip(*block.keys(streams, given), strict=True)
            else:
                keys, values, streams = zip(*self._pass(block.read, streams, given), strict=True)
            kept.append(BlockContext(modulation, buckets, keys, values))
        return tuple(kept)

    def _pass(self, block: Any, *given: Sequence[Tensor]) -> Any:
        return call(block, *given, recompute=self.use_checkpointing)

    def _run_joint(
        self,
        x: Tensor,
        prepared: PreparedContext,
        streams: Sequence[Tensor],
        residuals: Sequence[Tensor] | None,
    ) -> Tensor:
        """Pass context and target together through the blocks and return the target's part."""
        self.check_residuals(residuals)
        buckets, lengths = prepared.buckets, [context.shape[1] for context in streams]
        parts = zip(streams, buckets.split(x), strict=True)
        joint = [torch.cat([context.to(target.dtype), target], 1) for context, target in parts]
        for i, (block, modulation) in enumerate(zip(self.adaln_blocks, prepared.blocks, strict=True)):
            joint = self._pass(block.each, joint, buckets.split(modulation))  # pyrefly: ignore[bad-argument-type]
            if residuals is not None and i % 2:
                # Residuals of control are for the target, not for the context.
                added = zip(joint, lengths, buckets.split(residuals[i // 2]), strict=True)
                joint = [whole + F.pad(r.to(whole.dtype), (0, 0, length, 0)) for whole, length, r in added]
        return buckets.join([whole[:, length:] for whole, length in zip(joint, lengths, strict=True)])
