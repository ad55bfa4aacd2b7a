"""What is computed from volumes once and kept: cached cases, tokens and latents, segmentations, translations."""
