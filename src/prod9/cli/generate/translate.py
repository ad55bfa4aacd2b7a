"""``prod9 generate translate``: a modality that is missing, made from those that are there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.outputs import Inputs, OutputFolder, inputs_of, require_distinct
from prod9.cli.generate.translation_jobs import (
    Job,
    find_patients,
    job_from_sources,
    jobs_from_patients,
    read_job,
)
from prod9.cli.naming import known_as
from prod9.cli.shared import (
    CheckOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrintConfigOption,
    SetOption,
)
from prod9.cli.stage import AutoencoderOption, ModelOption, OptionalConfigOption, load_for_model, print_check
from prod9.devices import torch_device
from prod9.errors import ConfigError, DataError
from prod9.system.wording import plural

if TYPE_CHECKING:
    import numpy as np

    from prod9.config.schema import RunConfig
    from prod9.data.cases import Case
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.placement import Placed
    from prod9.pipelines.translation import Translation, TranslationPipeline
    from prod9.volumes import VolumeHeader

DECODES = ("sample", "mean")
_CUT = 0.001
"""Share of a head beyond the grid that is worth a warning."""


def _checked_decode(value: str) -> str:
    if value not in DECODES:
        raise typer.BadParameter(f"expected {' or '.join(DECODES)}, got {value!r}")
    return value


@dataclass(frozen=True)
class _Asked:
    """The options that decide what the files of a job hold."""

    num_samples: int
    decode: str
    seed: int
    resample: bool


def translate(
    model: ModelOption = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", "-s", metavar="NAME=PATH", help="A modality that is there; repeatable."),
    ] = None,
    patient: Annotated[
        list[Path] | None,
        typer.Option(
            "--patient", "-p", metavar="DIR", help="A patient's folder, or a folder of many; repeatable."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="NAME", help="What to make. [what a patient lacks]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Result of --source, .nii or .nii.gz.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", metavar="DIR", help="Results of --patient; made if missing."),
    ] = None,
    example: Annotated[
        list[Path] | None,
        typer.Option("--example", metavar="DIR", help="Another patient who has the target; repeatable."),
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Above 1: also their mean and uncertainty.")
    ] = 1,
    decode: Annotated[
        str,
        typer.Option(
            "--decode", metavar="sample|mean", callback=_checked_decode, help="mean: least error, smoother."
        ),
    ] = "sample",
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring registered sources to the first one's voxels.")
    ] = False,
    refiner: Annotated[
        str | None,
        typer.Option(
            "--refiner",
            metavar="RUN|CHECKPOINT|EXPORT",
            help="What corrects results. [RUN_refiner beside --model]",
        ),
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Correct results with the detail of the sources.")
    ] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples drawn together.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Sample k is drawn with this seed plus k.")] = 0,
    autoencoder: AutoencoderOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fill in a missing modality, from files (`--source`) or for whole patients (`--patient`).

    The result has the voxels, the orientation and the intensity range of the first source. With several
    samples it is their mean; each of them and their standard deviation, voxel by voxel, lie beside it.
    """
    if bool(source) == bool(patient):
        raise ConfigError(
            "expected --source NAME=PATH or --patient DIR, got " + ("both" if source else "neither")
        )
    if refiner is not None and not refine:
        raise ConfigError("expected --refiner PATH or --no-refine, got both; leave one out")
    run_config, opened = load_for_model("transformer", config, model, overrides=overrides)
    if print_config:
        shared.print_config(run_config)
        return
    job = job_from_sources(source, target, output) if source else None
    if patient and output_dir is None:
        raise ConfigError("expected --output-dir DIR with --patient, got none; add it")
    asked = _Asked(num_samples, decode, seed, resample)
    pipeline = _load_pipeline(opened, run_config, device, autoencoder, refiner, refine)
    del opened  # its weights are in the networks now
    known = pipeline.generator.label_names()
    if job is not None:
        jobs, complete = [job.spelt(known)], []
    else:
        wanted = None if target is None else known_as(target, known)
        jobs, complete = jobs_from_patients(patient or [], wanted, known)
    shown = find_patients(example or [])
    for each in jobs:
        pipeline.check(list(each.sources), each.target, num_examples=len(shown))
    require_distinct(
        (path.as_posix(), each) for each in jobs for path in each.results(asked.num_samples).values()
    )
    if check:
        print_check(_describe(pipeline, jobs, model or run_config.output_dir), as_json)
        return
    examples = [_example(pipeline, case.images, case.channels, resample) for case in shown]
    settings = _settings(pipeline, run_config, asked, shown)
    failed: dict[str, str] = {}
    with _writer(job, output_dir, settings, overwrite, asked) as writer:
        again = f"What was made is in {writer.where}; run the same command again for the rest."
        with shared.resumable(again):
            made = list(_translate(pipeline, jobs, writer, asked, examples, batch_size, failed))
    done = [each for each in jobs if f"{each.name} {each.target}" not in failed]
    _report(writer, done, made, complete, asked, as_json)
    if failed:
        raise DataError(
            f"{len(failed)} of {plural(jobs, 'translation')} failed:\n" + "\n".join(failed.values())
        )


class _Writer:
    """Where results go: the one file of ``--output`` with what lies beside it, or a folder with a manifest."""

    def __init__(self, folder: OutputFolder | None, where: Path) -> None:
        self.folder = folder
        self.where = where
        self._inputs: dict[Path, Inputs] = {}  # as they were before a job was read

    def is_done(self, job: Job, num_samples: int) -> bool:
        """Tell whether all results of a job are there, of the same settings and sources; raises DataError."""
        if self.folder is None:
            return False
        inputs = self._inputs[job.output] = inputs_of(job.files)
        results = job.results(num_samples).values()
        return all(self.folder.is_done(path.as_posix(), inputs) for path in results)

    def write(self, job: Job, kind: str, path: Path, data: "np.ndarray", reference: "VolumeHeader") -> None:
        """Write one result of a job, on the voxels of ``reference``."""
        from prod9 import volumes

        if self.folder is None:
            volumes.write(path, data, reference)
            return
        noted = {"kind": kind, "target": job.target, "sources": list(job.sources)}
        with self.folder.writing(path.as_posix(), inputs=self._inputs[job.output], **noted) as place:
            volumes.write(place, data, reference)


@contextmanager
def _writer(
    job: Job | None, output_dir: Path | None, settings: dict[str, Any], overwrite: bool, asked: _Asked
) -> Iterator[_Writer]:
    if job is None:
        assert output_dir is not None
        with OutputFolder(output_dir, settings, overwrite=overwrite) as folder:
            yield _Writer(folder, folder.path)
        return
    from prod9.files import check_writable

    there = [path for path in job.results(asked.num_samples).values() if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"--output: {there[0]} exists; choose another name, or replace it with --overwrite."
        )
    check_writable(job.output.parent)
    yield _Writer(None, job.output)


def _load_pipeline(
    source: "Source",
    config: "RunConfig",
    device: str,
    autoencoder: str | None,
    refiner: str | None,
    refine: bool,
) -> "TranslationPipeline":
    from prod9.config.load import config_to_dict
    from prod9.pipelines.translation import TranslationPipeline

    values = config_to_dict(config)
    sections = [(name, values[name]) for name in ("sampler", "masking", "sliding_window")]
    chosen = torch_device(device)
    return TranslationPipeline.from_checkpoint(
        source, device=chosen, autoencoder=autoencoder, overrides=sections, refiner=refiner, refine=refine
    )


def _example(
    pipeline: "TranslationPipeline", images: dict[str, Path], channels: Any, resample: bool
) -> "dict[str, np.ndarray]":
    """Return the volumes of another patient on the model's grid."""
    known = pipeline.generator.label_names()
    files = {name: (path, channels.get(name)) for name, path in images.items() if name in known}
    return pipeline.placement.place(read_job(files), resample=resample).images


def _translate(
    pipeline: "TranslationPipeline",
    jobs: Sequence[Job],
    writer: _Writer,
    asked: _Asked,
    examples: "Sequence[dict[str, np.ndarray]]",
    batch_size: int,
    failed: dict[str, str],
) -> Iterator[str]:
    """Do the jobs that are not done and yield what was written; a file that cannot be used fails its own job."""
    from prod9.volumes import cautions

    with shared.progress() as bar:
        task = bar.add_task("Translating", total=len(jobs))
        for done, job in enumerate(jobs):

            def report(share: float, done: int = done) -> None:
                bar.update(task, completed=done + share)

            try:
                if writer.is_done(job, asked.num_samples):
                    bar.update(task, completed=done + 1)
                    continue
                placed = pipeline.placement.place(read_job(job.sources), resample=asked.resample)
            except DataError as error:
                if len(jobs) == 1:
                    raise
                failed[f"{job.name} {job.target}"] = str(error)
                continue
            for text in cautions(placed.reference).values():
                shared.warn(text)
            if placed.cut > _CUT:
                shared.warn(
                    f"{job.name}: {placed.cut:.1%} of the head lies beyond the model's grid and stays empty."
                )
            result = pipeline.translate(
                placed.images,
                job.target,
                head=placed.inside,
                num_samples=asked.num_samples,
                seed=asked.seed,
                decode="mean" if asked.decode == "mean" else "sample",
                examples=examples,
                batch_size=batch_size,
                progress=report,
            )
            for kind, path in job.results(asked.num_samples).items():
                writer.write(job, kind, path, _restored(kind, result, placed), placed.reference)
                yield path.as_posix()


def _restored(kind: str, result: "Translation", placed: "Placed") -> "np.ndarray":
    """Return one result on the voxels of the first source."""
    if kind == "uncertainty":
        assert result.deviation is not None
        return placed.restore(result.deviation, difference=True)
    volume = result.mean if kind == "result" else result.volumes[int(kind.split()[1])]
    return placed.restore(volume)


def _settings(
    pipeline: "TranslationPipeline", config: "RunConfig", asked: _Asked, examples: "Sequence[Case]"
) -> dict[str, Any]:
    from prod9.config.load import config_to_dict

    values = config_to_dict(config)
    return {
        "command": "generate translate",
        "sha256": pipeline.sha256,
        **vars(asked),
        "examples": [
            {name: one["sha256"] for name, one in inputs_of(case.images).items()} for case in examples
        ],
        "sampler": values["sampler"],
        "masking": values["masking"],
        "sliding_window": values["sliding_window"],
    }


def _describe(pipeline: "TranslationPipeline", jobs: Sequence[Job], model: str) -> dict[str, Any]:
    from prod9.volumes import read_header

    for job in jobs:
        for file, place in job.sources.values():
            read_header(file, channel=place)
    return {
        "model": model,
        "translations": len(jobs),
        "targets": ", ".join(sorted({job.target for job in jobs})),
        "grid": list(pipeline.generator.grid),
        "tokens": list(pipeline.generator.token_grid),
        "steps": pipeline.generator.sampler.steps,
        "refiner": pipeline.sha256.get("refiner", "none")[:12],
        "device": str(pipeline.generator.device),
    }


def _report(
    writer: _Writer, jobs: Sequence[Job], made: list[str], complete: list[str], asked: _Asked, as_json: bool
) -> None:
    kept = sum(len(job.results(asked.num_samples)) for job in jobs) - len(made)
    if as_json:
        folder = writer.where if writer.folder else writer.where.parent
        shared.print_json({"output_dir": str(folder), "made": made, "kept": kept, "complete": complete})
        return
    shared.console.print(f"{plural(made, 'volume')} made, {kept} kept: {writer.where}")
    if complete:
        lack = "lacks" if len(complete) == 1 else "lack"
        shared.console.print(f"{plural(complete, 'patient')} {lack} nothing; --target makes one anew.")
