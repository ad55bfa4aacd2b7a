"""A search over settings of a sampler by successive halving, whose results are kept as they come.

Each round draws more volumes with fewer settings: those on the front of cost and quality go on first, then those behind
it. The model's own setting always goes on, so that the result can be compared with it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from prod9 import __version__
from prod9.config.schema import RectifiedFlowSamplerConfig, SamplerConfig
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.errors import ConfigError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.sets.rows import SetRows
from prod9.evaluation.settings import Report, silent
from prod9.evaluation.tuning import candidates as space
from prod9.evaluation.tuning.front import front, knee, ranks
from prod9.evaluation.tuning.quality import Drawn, describe_drawn, judge, pair_of
from prod9.generator.maskgit import MaskGiTSampler
from prod9.json_files import read_object, without_nan, write_json
from prod9.pipelines.labels import AbstractLabelPipeline
from prod9.stages import Family

FORMAT = 1
FILE = "search.json"
DEFAULT_COUNT = 12

Section = SamplerConfig | RectifiedFlowSamplerConfig
Build = Callable[[Any], MaskGiTSampler | RectifiedFlowSampler]
"""From the section of the family of the pipeline to a sampler."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What decides the result of a search.

    Attributes:
        volumes: per label in the last round; raised to an even number.
        evaluations: budget in evaluations of networks; None for ``DEFAULT_COUNT`` settings or ``seconds``.
        seconds: budget in seconds of drawing.
        seed: of the settings tried, of the volumes and of the floors.
        replicates: bootstrap samples of the intervals in the last round.
    """

    volumes: int = 16
    evaluations: float | None = None
    seconds: float | None = None
    seed: int = 0
    replicates: int = 100


@dataclass(frozen=True)
class Trial:
    """One setting in one round.

    Attributes:
        sampler: the changes to the model's sampler.
        round: number of the round, from 0.
        volumes: that were drawn, of all labels.
        evaluations: of networks per volume.
        seconds: per volume, decoding included.
        quality: as ``Quality.to_dict`` gives it.
    """

    sampler: dict[str, Any]
    round: int
    volumes: int
    evaluations: int
    seconds: float
    quality: dict[str, Any]

    @property
    def point(self) -> tuple[float, float]:
        """Return cost and loss."""
        loss = self.quality["loss"]
        return float(self.evaluations), math.inf if loss is None else float(loss)


@dataclass(frozen=True)
class Tuned:
    """The result: the trials of the last round, and indices into them."""

    trials: list[Trial]
    front: list[int]
    knee: int
    best: int
    dropped: list[Trial] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Search:
    """Tries settings of the sampler of a pipeline.

    Args:
        pipeline: draws; its sampler is replaced.
        own: the section of the model's sampler.
        build: makes a sampler of a section.
        family: whose grid of settings.
        scans: rows of the validation scans.
        extractor: that made them.
        settings: see :class:`TuneSettings`.
        about: what else the results depend on, such as hashes; kept results of anything else are refused.
        path: of the file with the results.
        batch_size: volumes drawn together; no result depends on it.
        report: called with the progress.
    """

    def __init__(
        self,
        *,
        pipeline: AbstractLabelPipeline,
        own: Section,
        build: Build,
        family: Family,
        scans: SetRows,
        extractor: SliceExtractor,
        settings: TuneSettings,
        about: Mapping[str, Any],
        path: Path,
        batch_size: int = 1,
        report: Report = silent,
    ) -> None:
        self.pipeline, self.own, self.build = pipeline, own, build
        self.family: Family = family
        self.scans, self.extractor, self.settings, self.path = scans, extractor, settings, path
        self.batch_size, self.report = batch_size, report
        self.about = json.loads(json.dumps({**about, "settings": asdict(settings)}))
        self.kept = self._read()

    @property
    def device(self) -> torch.device:
        """Where networks are."""
        return self.pipeline.device

    def run(self) -> Tuned:
        """Run all rounds; what an earlier run has kept is not drawn again."""
        left, rounds = self._candidates(), list[Trial]()
        dropped: list[Trial] = []
        for number in range(len(space.SHARES)):
            rounds = []
            for done, changes in enumerate(left):
                self.report(f"Round {number + 1}", done, len(left))
                rounds.append(self._trial(changes, number))
            self.report(f"Round {number + 1}", len(left), len(left))
            chosen = survivors([trial.point for trial in rounds], space.kept_after(number, len(left)))
            left = [rounds[i].sampler for i in chosen]
            dropped += [trial for i, trial in enumerate(rounds) if i not in chosen]
        points = [trial.point for trial in rounds]
        best = min(range(len(points)), key=lambda i: points[i][1])
        if not math.isfinite(points[best][1]):
            raise ConfigError(
                "--num-samples: expected enough volumes for a floor of every score, got "
                f"{self.settings.volumes} per label and {self.scans.num_patients} validation "
                "patients; raise --num-samples"
            )
        tuned = Tuned(rounds, front(points), knee(points), best, dropped)
        self._write(tuned)
        return tuned

    def section_of(self, trial: Trial) -> Section:
        """Return the whole section of the sampler of a trial."""
        return space.with_changes(self.own, trial.sampler)

    def _candidates(self) -> list[space.Changes]:
        drawn = space.draw_candidates(
            self.own,
            family=self.family,
            autoguided="weak" in self.pipeline.sha256,
            count=10_000,
            seed=self.settings.seed,
        )
        known = self.kept.get("count")
        if known is None:
            known = self._affordable(drawn)
            self.kept["count"] = known
            self._write()
        return drawn[:known]

    def _affordable(self, drawn: Sequence[space.Changes]) -> int:
        settings, labels = self.settings, len(self.pipeline.label_names())
        budget = settings.evaluations
        if budget is None and settings.seconds is None:
            return DEFAULT_COUNT
        costs = [
            float(labels * self.build(space.with_changes(self.own, one)).evaluations) for one in drawn[:200]
        ]
        if budget is None:
            assert settings.seconds is not None
            first = self._trial(drawn[0], 0)
            budget = settings.seconds * first.evaluations / max(first.seconds, 1e-9)
        count = space.affordable(costs, settings.volumes, budget)
        if count < 2:
            least = space.planned(costs[:2], settings.volumes)
            raise ConfigError(
                f"--budget: expected at least {least:,.0f} evaluations for two settings and {settings.volumes} volumes "
                f"per label, got {budget:,.0f}; raise it, or lower --num-samples"
            )
        return count

    def _trial(self, changes: space.Changes, number: int) -> Trial:
        for one in self.kept["trials"]:
            if one["sampler"] == changes and one["round"] == number:
                return Trial(**one)
        sampler = self.build(space.with_changes(self.own, changes))
        self.pipeline.sampler = sampler
        count = space.volumes_of(number, self.settings.volumes)
        drawn = Drawn(self.pipeline, count, self.settings.seed, self.batch_size)
        rows = describe_drawn(drawn, self.extractor, self.device)
        last = number == len(space.SHARES) - 1
        replicates = self.settings.replicates if last else 0
        pair = pair_of(rows, self.scans, seed=self.settings.seed, replicates=replicates)
        quality = without_nan(judge(pair, self.extractor.name).to_dict())
        trial = Trial(changes, number, len(rows), sampler.evaluations, drawn.seconds / len(rows), quality)
        self.kept["trials"].append(asdict(trial))
        self._write()
        return trial

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"trials": []}
        content = read_object(self.path, "the results of an earlier search", error=ConfigError)
        if content.get("about") != self.about or not isinstance(content.get("trials"), list):
            raise ConfigError(
                f"{self.path}: expected results of this model, these patients and these options, got those of others; "
                "choose another --output-dir, or replace them with --overwrite"
            )
        return {"trials": content["trials"], "count": content.get("count")}

    def _write(self, tuned: Tuned | None = None) -> None:
        result = None if tuned is None else without_nan(tuned.to_dict())
        content = {"format": FORMAT, "prod9": __version__, "about": self.about, **self.kept, "result": result}
        write_json(self.path, content)


def survivors(points: Sequence[tuple[float, float]], count: int) -> list[int]:
    """Return the ``count`` points that go on, in their order: the first, then by rank, then by loss."""
    found = ranks(points)
    order = sorted(range(len(points)), key=lambda i: (i != 0, found[i], points[i][1]))
    return sorted(order[:count])
