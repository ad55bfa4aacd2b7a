"""``prod9-train-maskgit-controlnet``: stage 3 of MaskGiT, from a trained transformer to one that is steered."""

from functools import partial

from prod9.cli.generate.control import generate_control
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands

app = new_app("Train what steers a stage-2 transformer by a segmentation or a label, and generate with it.")
add_run_commands(app, "maskgit_controlnet")
app.command(
    "generate",
    example="prod9-train-maskgit-controlnet generate -m outputs/demo/starter/stage3 --seg seg.nii.gz -o made",
)(generate_control)
main = partial(run_app, app)
