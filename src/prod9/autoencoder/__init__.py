"""Stage 1: volumes to latents and back, in windows or whole. Networks know no config, data or Lightning."""
