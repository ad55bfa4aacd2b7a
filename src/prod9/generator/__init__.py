"""Stage 2, MaskGiT: decoders over token grids, what conditions them, and the sampler."""
