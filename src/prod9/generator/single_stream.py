"""TransformerDecoderSingleStream: translation in context, one sequence of sources and target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prod9.generator.context import BlockContext, Buckets
from prod9.generator.heads import Groups
from prod9.generator.modality_processor import InContextCondition, ModalityProcessor
from prod9.generator.token_decoder import AbstractTokenDecoder, finish
from prod9.types import TokenGrid, TokenMask


@dataclass(frozen=True)
class PreparedContext:
    """What a TransformerDecoderSingleStream keeps of a condition over all steps.

    blocks: with ``prefix`` attention the modulation, keys and values of each block; with ``full`` the
    modulation ``[B 1 6E]`` alone. final: ``[B 1 2E]``. aligned: ``[B n E]``, added to the target's input, or
    None. buckets, streams: the embedded context of each bucket, ``[b S E]``, for ``full``; else None.
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
    """Decoder whose context and target form one sequence; context first, the target projected by itself.

    With ``prefix`` attention the context sees the context and the target sees all, so keys and values of the
    context are computed in ``prepare``, once a sample, and serve every step and both branches of guidance.
    With ``full`` attention the context sees the target too and everything is computed at every step.

    levels, embed_dim, num_blocks, num_heads, mlp_ratio, patch_size, groups, dropout, num_bands,
    use_checkpointing: see :class:`~prod9.generator.token_decoder.AbstractTokenDecoder`. num_classes: labels.
    attention: ``prefix`` or ``full``. aligned, context_stride (its ``stride``): see
    :class:`~prod9.generator.modality_processor.ModalityProcessor`.
    """

    condition: ModalityProcessor

    def __init__(
        self,
        *,
        levels: Sequence[int],
        embed_dim: int = 512,
        num_blocks: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        patch_size: int = 1,
        groups: Groups = "balanced",
        dropout: float = 0.1,
        num_bands: int | None = None,
        num_classes: int = 4,
        use_checkpointing: bool = False,
        attention: str = "prefix",
        aligned: bool = True,
        context_stride: int = 1,
    ) -> None:
        super().__init__(
            levels=levels,
            embed_dim=embed_dim,
            num_blocks=num_blocks,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            groups=groups,
            dropout=dropout,
            num_bands=num_bands,
            use_checkpointing=use_checkpointing,
            condition=ModalityProcessor(
                embed_dim=embed_dim,
                num_classes=num_classes,
                patch_size=patch_size,
                latent_channels=len(levels),
                num_bands=num_bands,
                aligned=aligned,
                stride=context_stride,
            ),
        )
        if attention not in ("prefix", "full"):
            raise ValueError(f"Expected attention prefix or full, got {attention!r}; use one of these.")
        self.attention = attention

    def prepare(self, condition: InContextCondition) -> PreparedContext:
        """Return all that depends on the condition alone, once a sample: the cache of the context."""
        context, padding = self.condition(condition)
        # One wait for the device a sample, or a training step: Python has to know how long the contexts are.
        buckets = Buckets.of((~padding).sum(1).tolist(), context.device)
        parts = zip(buckets.split(context), buckets.sizes, strict=True)
        streams = [part[:, :size].contiguous() for part, size in parts]
        embedded = F.silu(self.condition.modulator(condition))
        modulations = [block.modulate(embedded) for block in self.adaln_blocks]
        final, aligned = self.modulation(embedded), self.condition.aligned(condition)
        if self.attention == "full":
            return PreparedContext(tuple(modulations), final, aligned, buckets, tuple(streams))
        return PreparedContext(self._read(streams, modulations, buckets), final, aligned, buckets, None)

    def start_from(self, decoder: AbstractTokenDecoder) -> tuple[str, ...]:
        """Copy what a label-conditional decoder of the same size knows of the target; return what is new.

        Copied are the tokens' way in and out, the blocks, and the labels' embeddings, those of "no label" among
        them. What reads the sources is new, and ``aligned`` starts from zero, adding nothing yet. Raises
        ValueError with the first tensors that are missing there or have another shape; then nothing is copied.
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
                f"expected a label-conditional decoder of the same size, but these of {len(names)} tensors differ: "
                f"{', '.join(differ[:3])}; give both the same model and data.label_map, or start anew."
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
        """Return the normalised hidden state of every position of the target, the input of the head."""
        x = self.embed(tokens, mask)
        if prepared.aligned is not None:
            x = x + prepared.aligned.to(x.dtype)
        if prepared.streams is None:
            return finish(self.run_blocks(x, prepared.blocks, residuals), prepared.final)
        return finish(self._run_joint(x, prepared, prepared.streams, residuals), prepared.final)

    def sample(self, sampler: Any, shape: Sequence[int], condition: InContextCondition, **how: Any) -> Tensor:
        """Return what ``sampler`` (a MaskGiTSampler) draws with this decoder; ``how`` is its own.

        shape: (B, h, w, d).
        """
        return sampler.sample(self, shape, condition, **how)

    def _read(
        self, streams: Sequence[Tensor], modulations: Sequence[Tensor], buckets: Buckets
    ) -> tuple[BlockContext, ...]:
        """Pass the context of each bucket through the blocks and keep what each block's attention needs."""
        kept = []
        for i, (block, modulation) in enumerate(zip(self.adaln_blocks, modulations, strict=True)):
            given = buckets.split(modulation)
            if i + 1 == len(modulations):
                # Nothing reads the context after the last block.
                keys, values = zip(*block.keys(streams, given), strict=True)
            else:
                keys, values, streams = zip(*self._pass(block.read, streams, given), strict=True)
            kept.append(BlockContext(modulation, buckets, keys, values))
        return tuple(kept)

    def _pass(self, block: Any, *given: Sequence[Tensor]) -> Any:
        if self.use_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *given, use_reentrant=False)
        return block(*given)

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
            joint = self._pass(block.each, joint, buckets.split(modulation))  # pyright: ignore[reportArgumentType]
            if residuals is not None and i % 2:
                # Control speaks of the target: the context gets nothing of it.
                added = zip(joint, lengths, buckets.split(residuals[i // 2]), strict=True)
                joint = [whole + F.pad(r.to(whole.dtype), (0, 0, length, 0)) for whole, length, r in added]
        return buckets.join([whole[:, length:] for whole, length in zip(joint, lengths, strict=True)])
