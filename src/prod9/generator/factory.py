"""Decoders by the ``kind`` of a configuration."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.generator.transformer import TransformerDecoder

DECODERS: dict[str, Callable[..., AbstractTokenDecoder]] = {
    "label_conditional": partial(TransformerDecoder, source_latent=False),
    "decoder": partial(TransformerDecoder, source_latent=True),
    "single_stream": TransformerDecoderSingleStream,
}


def build_decoder(kind: str, *, levels: Sequence[int], **kwargs: Any) -> AbstractTokenDecoder:
    """Build the decoder of a model section; ``levels`` are those of the stage-1 quantiser."""
    if kind not in DECODERS:
        raise ValueError(
            f"Expected a decoder kind among {', '.join(DECODERS)}, got {kind!r}; use one of these."
        )
    return DECODERS[kind](levels=levels, **kwargs)
