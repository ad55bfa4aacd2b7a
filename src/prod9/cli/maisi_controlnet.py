"""``prod9-train-maisi-controlnet``: stage 3 of MAISI, from a trained flow to one that is steered."""

from functools import partial

from prod9.cli.generate.control import generate_control
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app(
    "Train what steers MAISI's flow by a segmentation, source images or a label, and generate with it."
)
add_run_commands(app, "maisi_controlnet")
app.command(
    "generate",
    example="prod9-train-maisi-controlnet generate "
    "-m outputs/demo-maisi/starter/maisi_controlnet --seg seg.nii.gz -o made",
)(generate_control)
main = partial(run_app, app)
