"""``prod9-train-autoencoder``: stage 1 of MaskGiT, from volumes to tokens and back."""

from prod9.cli.generate.infer import add_infer
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app("Train the stage-1 autoencoder, and pass volumes through it.")
add_run_commands(app, "autoencoder")
add_infer(app, "autoencoder")


def main() -> None:
    """Run the command line."""
    run_app(app)
