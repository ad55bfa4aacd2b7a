"""The common part of all commands that make files with a trained model.

A command checks its paths, builds its pipeline with :func:`build_pipeline`, and hands what is its own to
:func:`carry_out`: what ``--check`` prints, the settings of the output folder, and what makes the files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from prod9.cli import shared
from prod9.cli.generate.options import Model, Target
from prod9.cli.generate.outputs import Inputs, OutputFolder
from prod9.cli.parts.option import chosen_part
from prod9.cli.stage import load_for_model, print_check
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.parts import WorkPart
from prod9.system.progress import within

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.pipelines.detail import Finisher
    from prod9.pipelines.labels import AbstractLabelPipeline

P = TypeVar("P")


def require_models(*paths: str | Path | None) -> None:
    """Refuse (CheckpointError) a path of a model with nothing there, before the seconds that importing torch takes."""
    from prod9.models.named.find import require_model

    for path in paths:
        if path is not None:
            require_model(path)


def announce(*models: str | Path | None) -> None:
    """Say what a user of each named model should know, in one line each."""
    from prod9.models.named.find import provenance

    for text in dict.fromkeys(provenance(model) for model in models if model is not None):
        if text is not None:
            shared.messages.print(text)


def build_pipeline(
    stages: str | Sequence[str],
    build: Callable[..., P],
    model: Model,
    changes: Sequence[tuple[str, Any]] = (),
) -> "tuple[P, RunConfig]":
    """Return the pipeline of ``--model`` or ``--config``, and the config with all changes.

    With ``--print-config`` the command ends here.

    Args:
        stages: the stages that the command can use.
        build: makes the pipeline; called as ``from_checkpoint`` with the model, ``settings`` and ``device``.
        model: the options.
        changes: to the config, after those of ``--set``.
    """
    require_models(model.model)
    overrides: list[Any] = [*(model.overrides or []), *changes]
    config, source = load_for_model(stages, model.config, model.model, overrides=overrides)
    _refuse_unused_weak_model(config, [change for change in overrides if not isinstance(change, str)])
    if model.print_config:
        shared.print_config(config)
        raise typer.Exit
    require_models(Path(source))
    announce(model.model)
    return build(source, settings=config, device=torch_device(model.device)), config


def _refuse_unused_weak_model(config: "RunConfig", changes: Sequence[tuple[str, Any]]) -> None:
    """Refuse (ConfigError) a weaker model that nothing is guided by, unless a scale of 0 was asked for."""
    given = dict(changes)
    weak, sampler = given.get("sampler.weak_model", "auto"), getattr(config, "sampler", None)
    if weak == "auto" or "sampler.autoguidance_scale" in given:
        return
    if not getattr(sampler, "autoguidance_scale", 0.0):
        raise ConfigError(
            f"--weak-model: expected --autoguidance SCALE with it, got {weak} and a model that was set to no such "
            "guidance; give a scale, such as 0.25, or leave it out"
        )


def sampling_settings(config: "RunConfig") -> dict[str, Any]:
    """Return the sections of a config that decide what is sampled, as plain values; not those that are null."""
    from prod9.pipelines.recorded import SAMPLING

    sections = config.model_dump(mode="json", include=set(SAMPLING))
    settings = {name: section for name, section in sections.items() if section is not None}
    sampler = settings.get("sampler", {})
    if not sampler.get("autoguidance_scale"):
        # As written before there was autoguidance: such folders can still be filled further.
        for name in ("autoguidance_scale", "weak_model"):
            sampler.pop(name, None)
    return settings


def detail_settings(detail: "Finisher | None") -> dict[str, Any]:
    """Return what a manifest and ``--check`` say of a detail flow; nothing where there is none."""
    return {} if detail is None else {"detail": detail.settings}


def sampler_report(pipeline: "AbstractLabelPipeline") -> dict[str, Any]:
    """Return the lines of ``--check`` about the sampler."""
    return {
        "grid": list(pipeline.grid),
        "tokens": list(pipeline.latent_grid),
        "steps": pipeline.steps,
        "evaluations": pipeline.sampler.evaluations,
        **({"weak_model": pipeline.sha256["weak"][:12]} if "weak" in pipeline.sha256 else {}),
        "device": str(pipeline.device),
        **detail_settings(pipeline.detail),
    }


def disk_mb(count: int, grid: Sequence[int], *, bytes_per_voxel: int = 4) -> float:
    """Return the megabytes of ``count`` volumes without compression."""
    return round(count * grid[0] * grid[1] * grid[2] * bytes_per_voxel / 1e6, 1)


def carry_out(
    target: Target,
    *,
    describe: Callable[[], dict[str, Any]],
    settings: Callable[[], dict[str, Any]],
    make: Callable[[OutputFolder], Iterator[str]],
    report: Callable[[OutputFolder, list[str], bool], None],
    described: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
) -> None:
    """Fill the output folder and report it, or describe what would be done.

    Args:
        target: where to, and whether to do it.
        describe: returns what ``--check`` prints.
        settings: returns the settings of the output folder.
        make: makes what is missing in the folder and yields its names.
        report: prints what was made; called with the folder, the names and ``--json``.
        described: returns more for the manifest; see :class:`~prod9.cli.generate.outputs.OutputFolder`.
    """
    part = chosen_part(target.part)
    if target.check:
        print_check(describe() | ({} if part.is_all else {"part": str(part)}), target.as_json)
        return
    with (
        OutputFolder(
            Path(target.output_dir),
            settings(),
            described=described(),
            overwrite=target.overwrite,
            part=part,
        ) as folder,
        shared.resumable(how_to_go_on(target.output_dir)),
    ):
        made = list(make(folder))
    report(folder, made, target.as_json)


def how_to_go_on(where: str | Path) -> str:
    """Return what an interrupted command says."""
    return f"What was made is in {where}; run the same command again for the rest."


@dataclass(frozen=True, kw_only=True)
class Series:
    """Numbered samples of one kind.

    Attributes:
        title: shown beside the progress bar.
        stem: file names are ``STEM_0000.nii.gz`` and so on.
        num_samples: how many there are to be.
        draw: called as the ``generate`` of a pipeline, with ``num_samples``, ``start`` and ``progress``; yields
            samples, which have an ``index`` and a ``seed``.
        write: writes a sample to a path.
        noted: goes into the manifest beside index and seed.
        inputs: what the samples are made from.
        batch_size: samples that are drawn together, and by the same part.
    """

    title: str
    stem: str
    num_samples: int
    draw: Callable[..., Iterator[Any]]
    write: Callable[[Path, Any], None]
    noted: Mapping[str, Any]
    inputs: Inputs = field(default_factory=dict)
    batch_size: int = 1

    @property
    def names(self) -> list[str]:
        """The file name of each sample."""
        return [f"{self.stem}_{k:04d}.nii.gz" for k in range(self.num_samples)]


def make_series(folder: OutputFolder, series: Sequence[Series]) -> Iterator[str]:
    """Draw the samples of this part that ``folder`` lacks, write each, and yield its name."""
    shares = [_share(folder.part, one, place, len(series)) for place, one in enumerate(series)]
    folder.expect(
        [one.names[k] for one, share in zip(series, shares, strict=True) for k in share],
        of=[name for one in series for name in one.names],
    )
    with shared.progress() as bar:
        for one, share in zip(series, shares, strict=True):
            names = one.names
            missing = [k for k in share if not folder.is_done(names[k], one.inputs)]
            if not missing:
                continue
            task = bar.add_task(one.title, total=len(missing))
            done = 0
            for start, count in consecutive(missing):
                report = within(lambda value, task=task: bar.update(task, completed=value), done, 1)
                samples = one.draw(
                    num_samples=count, start=start, progress=lambda value, _, report=report: report(value)
                )
                for sample in samples:
                    name = names[sample.index]
                    noted = {**one.noted, "index": sample.index, "seed": sample.seed}
                    if drawn := getattr(sample, "covariates", None):
                        noted["covariates"] = dict(drawn)
                    with folder.writing(name, inputs=one.inputs, **noted) as place:
                        one.write(place, sample)
                    yield name
                done += count


def _share(part: WorkPart, series: Series, place: int, of: int) -> list[int]:
    """Return the samples that ``part`` draws of a series, number ``place`` of ``of``: whole batches in turn.

    More samples do not change who draws the first ones.
    """
    size = series.batch_size
    return [k for k in range(series.num_samples) if part.owns(k // size * of + place)]


def consecutive(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ``(first, count)`` of each run of consecutive numbers."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0], len(numbers)
