"""What was computed from volumes once and is kept: cached cases, tokens and latents, segmentations, translations."""
