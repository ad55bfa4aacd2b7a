"""``prod9-train-transformer``: stage 2 of MaskGiT, from tokens to a generator of tokens."""

from functools import partial

from prod9.cli.generate.label import generate_labels
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app(
    "Train the stage-2 transformer on the tokens of a trained autoencoder, the refiner of its translations, or a "
    "detail flow, and generate with it."
)
add_run_commands(app, "transformer", "refiner", "detail", "translation_detail")
app.command(
    "generate",
    example="prod9-train-transformer generate -m outputs/demo/starter/stage2_label -l FLAIR -o made",
)(generate_labels)
main = partial(run_app, app)
