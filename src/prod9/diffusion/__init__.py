"""Stage 2, MAISI: rectified flow in the latent of an autoencoder. Independent of config, data and Lightning."""
