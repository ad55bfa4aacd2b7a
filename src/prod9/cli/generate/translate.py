"""``prod9 generate translate``: a modality that is missing, made from those that are there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import scoring, tell_after_results, tell_merge, tell_next
from prod9.cli.generate.options import (
    Detail,
    Model,
    RefineOption,
    ResampleOption,
    Samples,
    Sampling,
    grouped,
)
from prod9.cli.generate.outputs import Inputs, OutputFolder, inputs_of, require_distinct
from prod9.cli.generate.run import (
    build_pipeline,
    detail_settings,
    how_to_go_on,
    require_models,
    sampler_report,
    sampling_settings,
)
from prod9.cli.generate.translation_jobs import (
    Job,
    find_patients,
    job_from_sources,
    jobs_of_cases,
    read_job,
)
from prod9.cli.naming import known_as
from prod9.cli.parts.engine import Engine
from prod9.cli.parts.option import PartOption, chosen_part
from prod9.cli.shared import CheckOption, DebugOption, JsonOption, OverwriteOption
from prod9.cli.stage import AutoencoderOption, print_check
from prod9.errors import ConfigError, DataError
from prod9.system.parts import ALL, WorkPart
from prod9.system.progress import within
from prod9.system.wording import plural

if TYPE_CHECKING:
    import numpy as np

    from prod9.data.cases import Case
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.placement import Placed
    from prod9.pipelines.translation import Translation, TranslationPipeline

DECODES = ("sample", "mean")


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


@dataclass(frozen=True)
class _LooseFiles:
    """What ``--output`` writes into ``path``, without a manifest; with the methods of an OutputFolder."""

    path: Path

    def are_done(self, names: Iterable[str], inputs: Inputs) -> bool:
        """Return False: files that exist were refused, or are to be replaced."""
        return False

    def writing(self, name: str, **noted: Any) -> AbstractContextManager[Path]:
        """Return where to write ``name``."""
        return nullcontext(Path(name))


@grouped
def translate(
    *,
    model: Model,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", "-s", metavar="NAME=FILE", help="An existing modality; repeatable."),
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
    example_patient: Annotated[
        list[Path] | None,
        typer.Option(
            "--example-patient", metavar="DIR", help="Another patient who has the target; repeatable."
        ),
    ] = None,
    decode: Annotated[
        str,
        typer.Option(
            "--decode", metavar="sample|mean", callback=_checked_decode, help="mean: least error, smoother."
        ),
    ] = "sample",
    resample: ResampleOption = False,
    refiner: Annotated[
        str | None,
        typer.Option(
            "--refiner",
            metavar="NAME|PATH",
            help="Refiner that corrects results. [RUN_refiner beside --model]",
        ),
    ] = None,
    refine: RefineOption = True,
    autoencoder: AutoencoderOption = None,
    samples: Samples,
    sampling: Sampling,
    detail: Detail,
    overwrite: OverwriteOption = False,
    part: PartOption = None,
    engine: Engine,
    check: CheckOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fill in a missing modality, from files (`--source`) or for whole patients (`--patient`).

    The result has the voxels, the orientation and the intensity range of the first source. With several
    samples it is their mean; each sample and the standard deviation per voxel are written beside it.
    """
    _check_places(source, patient, output, output_dir, part)
    if refiner is not None and not refine:
        raise ConfigError("expected --refiner PATH or --no-refine, got both; leave one out")
    if sampling.autoguidance_scale and decode == "mean" and samples.num_samples == 1:
        raise ConfigError(
            "--autoguidance: expected samples to guide, got --decode mean with one of them, which draws none; leave "
            "one of the options out, or add --num-samples"
        )
    job = job_from_sources(source, target, output) if source else None
    cases, shown = find_patients(patient or []), find_patients(example_patient or [])
    detail.check(detail.path)
    require_models(refiner, autoencoder, detail.path)
    load = partial(_load, autoencoder=autoencoder, refiner=refiner, refine=refine, detail=detail)
    pipeline, config = build_pipeline("transformer", load, model, sampling.changes())
    known = pipeline.generator.label_names()
    if job is not None:
        jobs, complete = [job.spelt(known)], []
    else:
        jobs, complete = jobs_of_cases(cases, None if target is None else known_as(target, known), known)
    _check_jobs(pipeline, jobs, shown, is_named=job is None)
    require_distinct(
        (path.as_posix(), each) for each in jobs for path in each.results(samples.num_samples).values()
    )
    if check:
        print_check(_describe(pipeline, jobs, model.model or config.output_dir), as_json)
        return
    asked = _Asked(samples.num_samples, decode, samples.seed, resample)
    examples = [_example(pipeline, case, resample) for case in shown]
    settings = {
        "command": "generate translate",
        "sha256": pipeline.sha256,
        **vars(asked),
        "examples": [{name: one["sha256"] for name, one in inputs_of(case.images).items()} for case in shown],
        **sampling_settings(config),
        **detail_settings(pipeline.detail),
    }
    failed: dict[Job, str] = {}
    share = ALL if job is not None else chosen_part(part)
    with _results(job, output_dir, settings, overwrite, samples.num_samples, share) as results:
        where = job.output if job is not None else results.path
        if isinstance(results, OutputFolder):
            jobs = _share(results, jobs, samples.num_samples)
        with shared.resumable(how_to_go_on(where)):
            made = list(_translate(pipeline, jobs, results, asked, examples, samples.batch_size, failed))
    kept = sum(len(each.results(samples.num_samples)) for each in jobs if each not in failed) - len(made)
    if as_json:
        shared.print_json({"output_dir": str(results.path), "made": made, "kept": kept, "complete": complete})
    else:
        shared.console.print(f"{plural(made, 'volume')} made, {kept} kept: {where}")
        if complete:
            lack = "lacks" if len(complete) == 1 else "lack"
            shared.console.print(f"{plural(complete, 'patient')} {lack} nothing; --target makes one again.")
        scores = ("samples",) if samples.num_samples > 1 else ("images", "--paired")
        _tell_next(results, patient, scores if target else (), model.model or config.output_dir)
    if failed:
        raise DataError(
            f"{len(failed)} of {plural(jobs, 'translation')} failed:\n" + "\n".join(failed.values())
        )


def _check_jobs(
    pipeline: "TranslationPipeline", jobs: Sequence[Job], shown: "Sequence[Case]", *, is_named: bool
) -> None:
    """Refuse (ConfigError) what the model cannot translate, before anything is made.

    Args:
        pipeline: the model.
        jobs: what is to be made.
        shown: patients of ``--example-patient``.
        is_named: whether jobs are those of patients, whom the message has to name.
    """
    for job in jobs:
        try:
            pipeline.check(list(job.sources), job.target, num_examples=len(shown))
        except ConfigError as error:
            raise ConfigError(f"{job.name}: {error}") if is_named else error from None
    for case in shown:
        lacking = sorted({job.target for job in jobs} - case.images.keys())
        if lacking:
            raise ConfigError(
                f"--example-patient: expected patients who have {', '.join(lacking)}, got {case.case_id} with "
                f"{', '.join(case.images)}; name others"
            )


def _tell_next(
    results: OutputFolder | _LooseFiles, patient: Sequence[Path] | None, scores: Sequence[str], model: str
) -> None:
    """Print the next command.

    Args:
        results: the results.
        patient: folders of the patients; none for loose files.
        scores: how ``prod9 evaluate`` scores them; empty for what patients lacked, to which there is no truth.
        model: the model.
    """
    made = results.path
    if isinstance(results, OutputFolder) and not results.part.is_all:
        tell_merge(results.root)
    elif patient and scores:
        tell_next("prod9", *scoring(*scores, real=patient[0])(made))
    elif patient:
        tell_after_results(made, "translate")
    else:
        tell_next("prod9", "app", "--model", model, note="to look and try others in the browser")


def _check_places(
    source: list[str] | None,
    patient: list[Path] | None,
    output: Path | None,
    output_dir: Path | None,
    part: str | None,
) -> None:
    """Refuse (ConfigError) other than one kind of input with the options that belong to it.

    Args:
        source: ``--source``.
        patient: ``--patient``.
        output: ``--output``.
        output_dir: ``--output-dir``.
        part: ``--part``.
    """
    if bool(source) == bool(patient):
        raise ConfigError(
            "expected --source NAME=FILE or --patient DIR, got " + ("both" if source else "neither")
        )
    if patient and output_dir is None:
        raise ConfigError("expected --output-dir DIR with --patient, got none; add it")
    if source and output_dir is not None:
        raise ConfigError("--output-dir: expected it with --patient, got --source; name the file by --output")
    if patient and output is not None:
        raise ConfigError(
            "--output: expected it with --source, got --patient; name the folder by --output-dir"
        )
    if source and part is not None:
        raise ConfigError("--part: expected it with --patient, got --source, which is one piece of work")


def _results(
    job: Job | None,
    output_dir: Path | None,
    settings: dict[str, Any],
    overwrite: bool,
    num_samples: int,
    part: WorkPart,
) -> "AbstractContextManager[OutputFolder | _LooseFiles]":
    """Return where results go: the file of ``--output`` with what lies beside it, or a folder with a manifest."""
    if job is None:
        return OutputFolder(output_dir or Path(), settings, overwrite=overwrite, part=part)
    from prod9.files import check_writable

    there = [path for path in job.results(num_samples).values() if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"--output: {there[0]} exists; choose another name, or replace it with --overwrite."
        )
    check_writable(job.output.parent)
    return nullcontext(_LooseFiles(job.output.parent))


def _share(folder: OutputFolder, jobs: Sequence[Job], num_samples: int) -> list[Job]:
    """Return the jobs of the folder's part of the work."""
    mine = [job for place, job in enumerate(jobs) if folder.part.owns(place)]
    names, of = (
        [path.as_posix() for job in some for path in job.results(num_samples).values()]
        for some in (mine, jobs)
    )
    folder.expect(names, of=of)
    return mine


def _load(source: "Source", *, detail: Detail, **chosen: Any) -> "TranslationPipeline":
    from prod9.pipelines.translation import TranslationPipeline

    return TranslationPipeline.from_checkpoint(source, detail=detail.choice(), **chosen)


def _example(pipeline: "TranslationPipeline", case: "Case", resample: bool) -> "dict[str, np.ndarray]":
    """Return the volumes of another patient on the model's grid."""
    known = pipeline.generator.label_names()
    files = {name: (path, case.channels.get(name)) for name, path in case.images.items() if name in known}
    return pipeline.placement.place(read_job(files), resample=resample).images


def _translate(
    pipeline: "TranslationPipeline",
    jobs: Sequence[Job],
    folder: "OutputFolder | _LooseFiles",
    asked: _Asked,
    examples: "Sequence[Mapping[str, np.ndarray]]",
    batch_size: int,
    failed: dict[Job, str],
) -> Iterator[str]:
    """Do the jobs that are not done and yield what was written; a file that cannot be used fails only its job."""
    from prod9 import volumes

    with shared.progress() as bar:
        task = bar.add_task("Translating", total=len(jobs))
        for done, job in enumerate(jobs):
            bar.update(task, completed=done)
            paths = job.results(asked.num_samples)
            try:
                inputs = inputs_of(job.files)
                if folder.are_done((path.as_posix() for path in paths.values()), inputs):
                    continue
                placed = pipeline.placement.place(read_job(job.sources), resample=asked.resample)
            except DataError as error:
                if len(jobs) == 1:
                    raise
                failed[job] = str(error)
                continue
            _warn(job, placed)
            result = pipeline.translate(
                placed.images,
                job.target,
                head=placed.inside,
                num_samples=asked.num_samples,
                seed=asked.seed,
                decode="mean" if asked.decode == "mean" else "sample",
                examples=examples,
                batch_size=batch_size,
                progress=within(lambda value: bar.update(task, completed=value), done, 1),
            )
            noted = {"target": job.target, "sources": list(job.sources)}
            for kind, path in paths.items():
                with folder.writing(path.as_posix(), inputs=inputs, kind=kind, **noted) as place:
                    volumes.write(place, _restored(kind, result, placed), placed.reference)
                yield path.as_posix()
        bar.update(task, completed=len(jobs))


def _warn(job: Job, placed: "Placed") -> None:
    from prod9.pipelines.segmentation import CUT
    from prod9.volumes import cautions

    for text in cautions(placed.reference).values():
        shared.warn(text)
    if placed.cut > CUT:
        shared.warn(f"{job.name}: {placed.cut:.1%} of the head lies beyond the model's grid and stays empty.")


def _restored(kind: str, result: "Translation", placed: "Placed") -> "np.ndarray":
    """Return one result on the voxels of the first source."""
    if kind == "uncertainty":
        assert result.deviation is not None, "several samples have one"
        return placed.restore(result.deviation, difference=True)
    volume = result.mean if kind == "result" else result.volumes[int(kind.split()[1])]
    return placed.restore(volume)


def _describe(pipeline: "TranslationPipeline", jobs: Sequence[Job], model: str) -> dict[str, Any]:
    from prod9.volumes import read_header

    for job in jobs:
        for file, place in job.sources.values():
            read_header(file, channel=place)
    return {
        "model": model,
        "translations": len(jobs),
        "targets": ", ".join(sorted({job.target for job in jobs})),
        "refiner": pipeline.sha256.get("refiner", "none")[:12],
        **sampler_report(pipeline.generator),
        **detail_settings(pipeline.detail),
    }
