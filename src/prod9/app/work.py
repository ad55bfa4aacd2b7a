"""What a request asks for, checked, and how it is carried out with the pipelines."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prod9 import __version__
from prod9.app.models import Model, Task
from prod9.errors import ConfigError
from prod9.json_files import write_json
from prod9.pipelines.inpainting import InpaintingPipeline
from prod9.pipelines.labels import AbstractLabelPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.pipelines.translation import TranslationPipeline
from prod9.system.progress import Share
from prod9.volumes import read, write

MAX_SAMPLES = 16
RECORD = "used.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to make.

    Attributes:
        model: name of the model.
        task: what to do with it.
        label: the modality to make.
        sources: modality → file, for a translation.
        scan: the file whose region is drawn again, or that of the segmentation, which says where the head is.
        mask: the region, or the segmentation to follow.
        num_samples: how many volumes.
        seed: of the first one.
        resample: bring registered files of other voxels to those of the first one.
    """

    model: str
    task: Task
    label: str
    sources: Mapping[str, Path] = field(default_factory=dict)
    scan: Path | None = None
    mask: Path | None = None
    num_samples: int = 1
    seed: int = 0
    resample: bool = False


@dataclass(frozen=True)
class Result:
    """A file that was made; ``mask`` is to be laid over it, if there is one, and ``notes`` are to be told with it."""

    path: Path
    mask: Path | None = None
    notes: tuple[str, ...] = ()


def carry_out(model: Model, request: Request, folder: Path, report: Share) -> list[Result]:
    """Make what ``request`` asks for in ``folder``; write what was used to ``used.json`` beside it.

    Raises ConfigError and DataError for what the model cannot do.

    Args:
        model: the one that the request names.
        request: what to make.
        folder: where results go.
        report: called with the share done.
    """
    if request.task not in model.tasks:
        raise ConfigError(
            f"task: expected one of {', '.join(model.tasks)}, as {model.name} can do, got {request.task}; "
            "choose another model."
        )
    folder.mkdir(parents=True, exist_ok=True)
    results = list(_TASKS[request.task](model.pipeline, request, folder, report))
    write_json(folder / RECORD, _record(model, request, results))
    return results


def _generate(
    pipeline: AbstractLabelPipeline, request: Request, folder: Path, report: Share
) -> Iterator[Result]:
    for volume in pipeline.generate(
        request.label, num_samples=request.num_samples, seed=request.seed, progress=_share(report)
    ):
        path = folder / f"{request.label}_{volume.index:04d}.nii.gz"
        write(path, volume.data, volume.affine)
        yield Result(path)


def _inpaint(pipeline: MaskGiTPipeline, request: Request, folder: Path, report: Share) -> Iterator[Result]:
    scan, region = _needed(request.scan, "scan"), _needed(request.mask, "mask")
    made = InpaintingPipeline(generator=pipeline).inpaint(
        read(scan), read(region), request.label, num_samples=request.num_samples, seed=request.seed,
        resample=request.resample, progress=_share(report),
    )  # fmt: skip
    header = read(scan).header
    for volume in made:
        path = folder / f"{request.label}_redrawn_{volume.index:04d}.nii.gz"
        write(path, volume.data, header)
        yield Result(path, region)


def _translate(
    pipeline: TranslationPipeline, request: Request, folder: Path, report: Share
) -> Iterator[Result]:
    pipeline.check(list(request.sources), request.label)
    files = {name: read(path) for name, path in request.sources.items()}
    placed = pipeline.placement.place(files, resample=request.resample)
    made = pipeline.translate(
        placed.images, request.label, head=placed.inside, num_samples=request.num_samples, seed=request.seed,
        progress=report,
    )  # fmt: skip
    for k, volume in enumerate(made.volumes):
        path = folder / f"{request.label}_{k:04d}.nii.gz"
        write(path, placed.restore(volume), placed.reference)
        yield Result(path)


def _control(
    pipeline: AbstractControlPipeline, request: Request, folder: Path, report: Share
) -> Iterator[Result]:
    pipeline.check(request.label, request.mask is not None)
    seg = pipeline.place(_needed(request.mask, "mask"), reference=request.scan)
    notes = tuple(seg.warnings(remedy="the scan that it belongs to, given with it,"))
    mask = folder / "segmentation.nii.gz"
    write(mask, seg.seg, seg.affine, dtype="uint8", space=seg.space)
    for volume in pipeline.generate(
        request.label, seg=seg, num_samples=request.num_samples, seed=request.seed, progress=_share(report)
    ):
        path = folder / f"{request.label}_{volume.index:04d}.nii.gz"
        write(path, volume.data, volume.affine, space=seg.space)
        yield Result(path, mask, notes)


_TASKS: dict[Task, Callable[[Any, Request, Path, Share], Iterator[Result]]] = {
    "label": _generate,
    "inpaint": _inpaint,
    "translate": _translate,
    "control": _control,
}


def _share(report: Share) -> Callable[[float, int], None]:
    return lambda done, total: report(done / total)


def _needed(path: Path | None, name: str) -> Path:
    if path is None:
        raise ConfigError(f"{name}: expected a NIfTI file, got none; choose one.")
    return path


def _record(model: Model, request: Request, results: list[Result]) -> dict[str, Any]:
    files = {**request.sources, "scan": request.scan, "mask": request.mask}
    # A translator knows of its refiner and its detail flow, its generator does not.
    used = model.pipeline if isinstance(model.pipeline, TranslationPipeline) else model.generator
    return {
        "prod9": __version__,
        "model": model.name,
        "sha256": used.sha256,
        "task": request.task,
        "label": request.label,
        "seed": request.seed,
        "num_samples": request.num_samples,
        "resample": request.resample,
        "inputs": {name: path.name for name, path in files.items() if path is not None},
        "results": [result.path.name for result in results],
        "notes": list(results[0].notes),
    }
