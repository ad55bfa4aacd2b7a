"""Decoders by the ``kind`` of a configuration."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prod9.autoencoder.checks import require_choice
from prod9.generator.single_stream import TransformerDecoderSingleStream
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.generator.transformer import TransformerDecoder

DECODERS: dict[str, Callable[..., AbstractTokenDecoder]] = {
    "label_conditional": partial(TransformerDecoder, source_latent=False),
    "decoder": partial(TransformerDecoder, source_latent=True),
    "single_stream": TransformerDecoderSingleStream,
}


def build_decoder(kind: str, *, levels: Sequence[int], **kwargs: Any) -> AbstractTokenDecoder:
    """Return the decoder of ``kind`` for tokens of ``levels``, built with the other fields of its model section."""
    require_choice("kind", kind, DECODERS)
    return DECODERS[kind](levels=levels, **kwargs)
