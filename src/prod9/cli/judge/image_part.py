"""One part of the features of ``prod9 evaluate images``, where several computers divide the work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prod9.cli import shared
from prod9.cli.front.after import tell_merge
from prod9.cli.judge.options import RunOptions
from prod9.cli.judge.reporting import reporting
from prod9.cli.parts.record import FEATURES, PartRecord, plan_of, require_same_count
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.parts import WorkPart
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.evaluation.images import ImageSettings


def describe_image_part(
    real: Path,
    generated: Path,
    settings: "ImageSettings",
    work: WorkPart,
    output_dir: Path,
    options: RunOptions,
) -> None:
    """Compute one part of the features of ``evaluate images``, below ``output_dir``.

    Raises ConfigError where parts would not be alike.

    Args:
        real: folder of real volumes.
        generated: folder of generated volumes.
        settings: of the whole comparison.
        work: the part.
        output_dir: of all parts.
        options: of the run.
    """
    if settings.skip_bad or ("classifier" in settings.extractors and settings.classifier is None):
        given = "--skip-bad" if settings.skip_bad else "--extractor classifier"
        remedy = (
            "repair the files first" if settings.skip_bad else "name a trained one with --classifier FILE"
        )
        raise ConfigError(f"--part: expected parts that are alike, got {given}; {remedy}")
    from prod9.evaluation.image_sets import describe_part

    require_same_count(output_dir, work)
    folder = work.folder(output_dir)

    def expect(decisive: Mapping[str, Any], names: Sequence[str], all_names: Sequence[str]) -> None:
        PartRecord(
            part=str(work),
            kind=FEATURES,
            settings=dict(decisive),
            total=len(all_names),
            plan=plan_of(all_names),
            names=list(names),
        ).write(folder)

    folder.mkdir(parents=True, exist_ok=True)
    again = "The features of finished volumes are kept; the same command continues from here."
    with shared.resumable(again), reporting() as report:
        num = describe_part(
            real,
            generated,
            settings,
            work,
            folder,
            expect=expect,
            device=torch_device(options.device),
            report=report,
        )
    if options.as_json:
        shared.print_json({"output_dir": str(folder), "volumes": num})
        return
    shared.console.print(f"{plural(num, 'volume')} described in {folder}")
    tell_merge(output_dir)
