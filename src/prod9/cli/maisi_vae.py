"""``prod9-train-maisi-vae``: stage 1 of MAISI, from volumes to a continuous latent and back."""

from functools import partial

from prod9.cli.autoencoder import add_infer
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app("Train MAISI's variational autoencoder, and pass volumes through it.")
add_run_commands(app, "maisi_vae")
add_infer(app, "maisi_vae", latents="--save-latents", text="Also write the mean latent, as NAME_latent.npz.")
main = partial(run_app, app)
