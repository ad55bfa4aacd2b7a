"""``prod9-train-maisi-diffusion``: stage 2 of MAISI, a rectified flow from noise to latents."""

from functools import partial

from prod9.cli.generate.label import generate_labels
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app(
    "Train MAISI's diffusion network on the latents of a trained autoencoder, or a detail flow, and generate with it."
)
add_run_commands(app, "maisi_diffusion", "maisi_detail")
app.command(
    "generate",
    example="prod9-train-maisi-diffusion generate "
    "-m outputs/demo-maisi/starter/maisi_diffusion -l FLAIR -o made",
)(generate_labels)
main = partial(run_app, app)
