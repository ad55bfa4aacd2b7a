"""The end of the demo: the copy audit of the generated volumes, and the report."""

from collections.abc import Callable
from pathlib import Path

from prod9.errors import Prod9Error
from prod9.evaluation.audit.embeddings import VoxelEmbedding
from prod9.evaluation.audit.sets import sets_of_run
from prod9.evaluation.audit.volumes import readable, run_audit
from prod9.evaluation.report.page import Sources, write_report
from prod9.evaluation.sets.volume_sets import BadFiles

REPORT = "report.html"
FALSE_ALARMS, MAX_SHARE = 0.05, 0.1
"""The defaults of ``prod9 audit``."""


def finish_demo(
    output_dir: Path, *, run: Path, generated: Path, say: Callable[[str], None], radiological: bool = False
) -> Path:
    """Audit ``generated`` against the patients of ``run``, by voxels alone, and write the report of ``output_dir``.

    For a cohort too small for an audit, the report states that there is none. Returns the report's path.

    Args:
        output_dir: of the demo.
        run: whose patients are compared with.
        generated: folder of volumes.
        say: called with lines of progress.
        radiological: show the patient's right on the left.
    """
    say("Looking for copies of training patients")
    try:
        bad = BadFiles(skip=False)
        sets = sets_of_run(run, generated, bad=bad)
        voxels = VoxelEmbedding.fit(readable(sets.train, bad))
        result = run_audit(sets, [voxels], false_alarms=FALSE_ALARMS, max_share=MAX_SHARE, bad=bad)
        result.write(generated.parent / "audit", voxels)
    except Prod9Error as error:
        say(f"No copy audit: {error}")
    say("Writing the report")
    return write_report(output_dir, output_dir / REPORT, Sources(radiological=radiological))
