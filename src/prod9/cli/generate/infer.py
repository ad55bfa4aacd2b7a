"""``prod9 infer``, and ``infer`` of both stage-1 programs: volumes through the latent and back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_merge, tell_next
from prod9.cli.generate.options import Model, Target, grouped
from prod9.cli.generate.outputs import Inputs, OutputFolder, inputs_of
from prod9.cli.generate.run import build_pipeline, carry_out, sampling_settings
from prod9.cli.parsing import App
from prod9.errors import ConfigError, DataError
from prod9.stages import STAGES
from prod9.system.machine import expand
from prod9.system.wording import plural

if TYPE_CHECKING:
    import torch

    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.reconstruction import Reconstruction, ReconstructionPipeline

Stage1 = Literal["autoencoder", "maisi_vae"]

LATENTS = {
    "autoencoder": ("--save-tokens", "the tokens, as NAME_tokens.npz"),
    "maisi_vae": ("--save-latents", "the mean latent, as NAME_latent.npz"),
}
"""The option of ``infer`` that writes the latents, by stage, and what it writes."""


def add_infer(app: App, *stages: Stage1) -> None:
    """Add ``infer`` of the autoencoders of ``stages`` to the commands of ``app``; the model decides which it is."""
    names: list[str] = [LATENTS[stage][0] for stage in stages]
    texts = [LATENTS[stage][1] for stage in stages]
    program = "prod9" if len(stages) != 1 else STAGES[stages[0]].command

    @app.command(example=f"{program} infer brain.nii.gz -m outputs/demo/starter/stage1 -o made")
    @grouped
    def infer(
        inputs: Annotated[
            list[Path],
            typer.Argument(metavar="INPUT…", help="NIfTI files, or folders that are searched for them."),
        ],
        *,
        model: Model,
        save_latents: Annotated[
            bool, typer.Option(*names, help=f"Also write {', or '.join(texts)}.")
        ] = False,
        target: Target,
    ) -> None:
        """Reconstruct volumes: file → latent → file, with the geometry and intensities of the input.

        Large volumes: `--set sliding_window.strategy=exact`. Run it again after an interruption, and
        only what is missing is made.
        """
        files = find_volumes(inputs, Path(target.output_dir))
        pipeline, config = build_pipeline(stages, _load, model)
        failed: dict[str, str] = {}
        carry_out(
            target,
            describe=lambda: _describe(pipeline, files, model.model or config.output_dir),
            settings=lambda: {
                "command": "infer",
                "sha256": {"autoencoder": pipeline.sha256},
                **sampling_settings(config),
            },
            make=lambda folder: _reconstruct(pipeline, folder, files, save_latents, failed),
            report=lambda folder, made, as_json: _report(
                folder,
                made,
                [name for name in _share(folder, files) if name not in failed],
                pipeline,
                as_json,
                inputs[0],
            ),
        )
        if failed:
            raise DataError(
                f"{len(failed)} of {plural(files, 'file')} could not be used:\n" + "\n".join(failed.values())
            )


def find_volumes(inputs: Sequence[Path], output_dir: Path) -> dict[str, Path]:
    """Return output name → NIfTI file; files of a folder keep their place below it.

    In folders, segmentations (by name) and files in an ``output_dir`` inside of them are left out. Raises DataError
    when there is nothing, ConfigError when two inputs would get one name or an output would replace its input.
    """
    from prod9.data.layouts.names import bare, is_volume
    from prod9.data.layouts.scan import find_volumes as walk_volumes
    from prod9.data.layouts.scan import no_volumes, unreachable

    target = expand(output_dir).resolve()
    files: dict[str, Path] = {}

    def is_result(path: Path, folder: Path) -> bool:
        # A folder around all inputs, such as the current one, holds more than results.
        return folder.resolve() in target.parents and target in path.resolve().parents

    for given in inputs:
        given = expand(given)
        if given.is_dir():
            images = [p for p in walk_volumes(given, images_only=True) if not is_result(p, given)]
            found = [(p.relative_to(given), p) for p in images]
        elif given.is_file() and is_volume(given.name):
            found = [(Path(given.name), given)]
        else:
            if given.is_symlink() and (message := unreachable(given)) is not None:
                raise DataError(message)
            got = "a file of another kind" if given.exists() else "nothing there"
            raise DataError(f"{given}: expected a .nii or .nii.gz file or a folder with some, got {got}")
        if not found:
            raise DataError(f"{given}: expected .nii or .nii.gz files in the folder, {no_volumes(given)}")
        for relative, source in found:
            name = relative.with_name(f"{bare(relative.name)}.nii.gz").as_posix()
            if name in files:
                raise ConfigError(f"{files[name]} and {source} would both become {name}; give one at a time")
            if target / name == source.resolve():
                raise ConfigError(
                    f"{source}: the output would replace its input; choose another --output-dir"
                )
            files[name] = source
    return files


def _load(source: "Source", *, settings: "RunConfig", device: "torch.device") -> "ReconstructionPipeline":
    from prod9.pipelines.reconstruction import ReconstructionPipeline

    stage: Any = settings.stage
    return ReconstructionPipeline.from_checkpoint(source, stage=stage, settings=settings, device=device)


def _describe(pipeline: "ReconstructionPipeline", files: dict[str, Path], model: str) -> dict[str, Any]:
    from prod9.volumes import read_header

    headers = [read_header(file) for file in files.values()]
    voxels = sum(h.shape[0] * h.shape[1] * h.shape[2] for h in headers)
    return {
        "model": model,
        "files": len(files),
        "grid": list(pipeline.placement.grid),
        "device": str(pipeline.device),
        "disk_mb": round(4 * voxels / 1e6, 1),
    }


def _reconstruct(
    pipeline: "ReconstructionPipeline",
    folder: OutputFolder,
    files: dict[str, Path],
    save_latents: bool,
    failed: dict[str, str],
) -> Iterator[str]:
    """Yield the names of what was made; the fault of a file goes into ``failed``, and the others are still made."""
    from prod9.volumes import cautions

    def names_of(name: str) -> list[str]:
        return [name, *([_latent_name(name, pipeline)] if save_latents else [])]

    mine = _share(folder, files)
    folder.expect(
        [one for name in mine for one in names_of(name)],
        of=[one for name in files for one in names_of(name)],
        count=len(mine),
    )
    with shared.progress() as bar:
        task = bar.add_task("Reconstruct", total=len(mine))
        for name, source in mine.items():
            result, inputs = None, {}
            try:
                inputs = inputs_of({"source": source})
                if not folder.are_done(names_of(name), inputs):
                    result = pipeline.reconstruct(source)
            except DataError as error:
                failed[name] = str(error)
            if result is not None:
                _write(folder, name, source, result, inputs, pipeline if save_latents else None)
                for text in cautions(result.header).values():
                    shared.warn(text)
                bar.console.print(f"{name}: {result.psnr_head:.2f} dB in the head, on {_grid(pipeline)}")
                yield name
            bar.advance(task)


def _share(folder: OutputFolder, files: dict[str, Path]) -> dict[str, Path]:
    """Return the files that the part of ``folder`` reconstructs."""
    return {name: path for place, (name, path) in enumerate(files.items()) if folder.part.owns(place)}


def _write(
    folder: OutputFolder,
    name: str,
    source: Path,
    result: "Reconstruction",
    inputs: Inputs,
    latent_of: "ReconstructionPipeline | None",
) -> None:
    from prod9 import volumes

    if latent_of is not None:
        with folder.writing(_latent_name(name, latent_of), inputs=inputs, source=str(source)) as target:
            _write_latent(target, latent_of, result)
    scores = {"psnr": round(result.psnr, 3), "psnr_head": round(result.psnr_head, 3)}
    with folder.writing(name, inputs=inputs, source=str(source), **scores) as target:
        volumes.write(target, result.data, result.header)


def _latent_name(name: str, pipeline: "ReconstructionPipeline") -> str:
    return f"{name.removesuffix('.nii.gz')}_{'tokens' if pipeline.has_tokens else 'latent'}.npz"


def _write_latent(path: Path, pipeline: "ReconstructionPipeline", result: "Reconstruction") -> None:
    """Write the latent and the 4×4 affine of the voxel grid that it decodes to.

    Tokens ``[h w d]`` with the FSQ levels, or z_mu float32 ``[Z h w d]``.
    """
    import numpy as np

    from prod9.data.stores.latents import token_dtype
    from prod9.files import atomic_write

    arrays: dict[str, Any] = {
        "affine": result.grid_affine,
        "downsampling_factor": np.asarray(pipeline.autoencoder.autoencoder.downsampling_factor),
    }
    if result.tokens is None:
        arrays["latent"] = result.latent
    else:
        network = pipeline.autoencoder.tokenizer
        arrays["tokens"] = result.tokens.astype(token_dtype(network.vocab_size - 1))
        arrays["levels"] = np.asarray(network.levels)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _grid(pipeline: "ReconstructionPipeline") -> str:
    """Return the grid of the scores, in words."""
    if pipeline.placement.spacing is None:
        return "the voxels of the file"
    return f"the model's grid ({' × '.join(f'{mm:g}' for mm in pipeline.placement.spacing)} mm)"


def _report(
    folder: OutputFolder,
    made: list[str],
    names: list[str],
    pipeline: "ReconstructionPipeline",
    as_json: bool,
    given: Path,
) -> None:
    entries = {name: folder.files[name] for name in names if name in folder.files}
    scores = {
        key: [entry[key] for entry in entries.values() if entry[key] is not None]
        for key in ("psnr", "psnr_head")
    }
    means = {key: round(fmean(values), 3) for key, values in scores.items() if values}
    measured_on = _grid(pipeline)
    if as_json:
        result = {"output_dir": str(folder.path), "made": made, "mean": means, "measured_on": measured_on}
        shared.print_json({**result, "files": entries})
        return
    shared.console.print(f"{plural(made, 'volume')} made, {len(names) - len(made)} kept, in {folder.path}")
    texts = {"psnr": "Mean PSNR {:.2f} dB", "psnr_head": "in the head {:.2f} dB"}
    if means:
        shown = ", ".join(texts[key].format(mean) for key, mean in means.items())
        shared.console.print(f"{shown}, on {measured_on}")
    if not folder.part.is_all:
        tell_merge(folder.root)
        return
    scores = ("--paired", "-o", f"{folder.path}_scores")
    tell_next("prod9", "evaluate", "images", given if given.is_dir() else given.parent, folder.path, *scores)
