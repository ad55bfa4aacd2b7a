"""``prod9 generate`` and ``prod9-generate``: volumes from trained models."""

from prod9.cli.generate.control import generate_control
from prod9.cli.generate.inpaint import inpaint
from prod9.cli.generate.label import generate_labels
from prod9.cli.generate.masks import generate_masks
from prod9.cli.generate.patients import generate_patients
from prod9.cli.generate.translate import translate
from prod9.cli.shared import new_app, run_app

app = new_app("Generate volumes with trained models.")
app.command("label", example="prod9 generate label -m outputs/demo/starter/stage2_label -l FLAIR -o made")(
    generate_labels
)
app.command(
    "translate",
    example="prod9 generate translate -m outputs/demo/starter/stage2 -p outputs/demo/data -t FLAIR -o made",
)(translate)
app.command(
    "inpaint",
    example="prod9 generate inpaint -m outputs/demo/starter/stage2_label -s T1=t1.nii.gz -r region.nii.gz -o made",
)(inpaint)
app.command(
    "control", example="prod9 generate control -m outputs/demo/starter/stage3 --seg seg.nii.gz -o made"
)(generate_control)
app.command("masks", example="prod9 generate masks --vary seg.nii.gz -n 4 -o masks")(generate_masks)
app.command(
    "patients",
    example="prod9 generate patients -m outputs/demo/starter/stage2_label --in-context outputs/demo/starter/stage2 "
    "-n 4 -o made",
)(generate_patients)


def main() -> None:
    """Run the command line."""
    run_app(app)
