"""Stage 1: volumes to latents and back, in windows or whole. Independent of config, data and Lightning."""
