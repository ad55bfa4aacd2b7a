"""The picture of a search: quality against cost, with the knee."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prod9.evaluation.tuning.search import Tuned
from prod9.files import atomic_write


def write_picture(path: Path, tuned: Tuned, *, title: str) -> None:
    """Write a PNG: every trial by evaluations per volume and loss, the front as a line, the knee as a star."""
    figure = Figure(figsize=(7, 4.6), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dropped = [trial.point for trial in tuned.dropped]
    points = [trial.point for trial in tuned.trials]
    if dropped:
        axes.scatter(*zip(*dropped, strict=True), s=14, c="#b8bfc6", label="left out after an earlier round")
    axes.scatter(*zip(*points, strict=True), s=30, c="#0d7d87", label="last round")
    line = [points[i] for i in tuned.front]
    axes.plot(*zip(*line, strict=True), c="#0d7d87", lw=1.2)
    axes.scatter(
        *points[0], s=90, marker="D", facecolors="none", edgecolors="#5b4fc4", label="the model's own"
    )
    axes.scatter(*points[tuned.knee], s=220, marker="*", c="#d9652b", zorder=3, label="knee")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("evaluations of networks per volume")
    axes.set_ylabel("loss: geometric mean of the multiples of the floor")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
