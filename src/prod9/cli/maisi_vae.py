"""``prod9-train-maisi-vae``: stage 1 of MAISI, from volumes to a continuous latent and back."""

from prod9.cli.generate.infer import add_infer
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app("Train MAISI's variational autoencoder, and pass volumes through it.")
add_run_commands(app, "maisi_vae")
add_infer(app, "maisi_vae")


def main() -> None:
    """Run the command line."""
    run_app(app)
