"""Stage 2, MAISI: rectified flow in the latent of an autoencoder. Networks know no config, data or Lightning."""
