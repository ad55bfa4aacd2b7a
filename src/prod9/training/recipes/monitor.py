"""Which metric picks the checkpoints of a run, and whether its lowest or its highest value is the best."""

from difflib import get_close_matches

from prod9.config.schema import RunConfig
from prod9.errors import ConfigError
from prod9.training.recipes.table import Recipe, all_recipes, recipe_of

_SLIP = 0.9
"""How alike two names are, of 1, when one is a slip for the other."""
_BEST = {
    "min": ("loss", "l1", "lpips", "error", "sample_distance", "fid", "kid"),
    "max": (
        "psnr", "ssim", "combined_metric", "dice", "foreground_dice", "accuracy", "classifier_accuracy",
        "codebook_usage", "perplexity", "inception_score", "region_contrast",
    ),
}  # fmt: skip
"""Metrics by which of their values is best; ``loss_region`` and ``accuracy_level_2`` follow their first word."""


def monitor_of(config: RunConfig) -> tuple[str, str]:
    """Return the metric that picks the checkpoints of ``config``, and ``min`` or ``max``.

    Raises ConfigError for a metric that no validation measures, for the worse direction of a metric that has a better
    one, and for a metric that has none and no ``mode`` beside it.
    """
    section, recipe = config.callbacks.checkpoint, recipe_of(config)
    monitor = section.monitor or recipe.monitor[0]
    check_monitor(monitor, recipe)
    better, wanted = _better(monitor.removeprefix("val/")), section.mode
    if better is None and wanted is None:
        raise ConfigError(
            f"callbacks.checkpoint.mode: expected min or max for {monitor}, of which neither is always better, got "
            "null; set one."
        )
    if better is not None and wanted not in (None, better):
        raise ConfigError(
            f"callbacks.checkpoint.mode: expected {better} for {monitor}, got {wanted}, which keeps the worst "
            "checkpoints; remove it."
        )
    return monitor, better or str(wanted)


def _better(metric: str) -> str | None:
    return next(
        (
            mode
            for mode, names in _BEST.items()
            if any(metric == name or metric.startswith(f"{name}_") for name in names)
        ),
        None,
    )


def check_monitor(monitor: str, recipe: Recipe) -> None:
    """Refuse, before anything starts, a metric that no validation of ``recipe`` will measure by that name.

    Not every validation measures everything, so a name that is not close to one of the usual names is accepted.
    """
    names = [f"val/{name}" for name in recipe.metrics]
    known = {f"val/{name}" for other in all_recipes() for name in other.metrics}
    slips = get_close_matches(monitor, names, n=1, cutoff=_SLIP)
    if monitor not in known and (slips or not monitor.startswith("val/")):
        hint = f"; did you mean {slips[0]!r}?" if slips else "; choose one."
        raise ConfigError(
            f"callbacks.checkpoint.monitor: expected one of {', '.join(names)}, got {monitor!r}{hint}"
        )
