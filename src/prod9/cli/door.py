"""``prod9 train``, ``validate``, ``test`` and ``infer``: every stage, which the config or the model decides."""

from prod9.cli.generate.infer import add_infer
from prod9.cli.shared import new_app
from prod9.cli.stage import add_run_commands
from prod9.stages import STAGES

app = new_app("Train and measure models of every stage.")
add_run_commands(app, *STAGES)
add_infer(app, "autoencoder", "maisi_vae")
