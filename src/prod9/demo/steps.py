"""The steps of the demo; an interrupted step goes on the next time, a finished one is skipped.

They use the code of the commands: the simulated folder is read as a BraTS folder, ``training.run`` trains the
stages, and pipelines make the volumes.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9 import __version__
from prod9.config.schema import AutoencoderConfig, MaisiVAEConfig, RunConfig
from prod9.data.layouts.find import find_cases
from prod9.data.simulated.cohort import simulate_cohort
from prod9.data.stores.translations import content_key
from prod9.demo.control import MODALITIES, score_stage3
from prod9.demo.masks import DemoMasks
from prod9.demo.patients import PATIENTS, make_patients
from prod9.demo.pictures import DemoPictures
from prod9.demo.plan import DemoPlan, starter_weights
from prod9.demo.records import add_seconds, read_kept, write_metrics
from prod9.demo.removal import remove_tumour
from prod9.demo.report import finish_demo
from prod9.demo.scores import Judges, Metrics, score_stage1
from prod9.demo.sets import Autoencoder, VolumeSet, load_sets
from prod9.demo.translation import score_translations
from prod9.devices import torch_device
from prod9.errors import DataError
from prod9.evaluation.judges.segmenter import Segmenter, train_segmenter
from prod9.evaluation.report.pictures import REMOVAL
from prod9.evaluation.sets.patients import region_masks
from prod9.files import atomic_write
from prod9.json_files import without_nan
from prod9.measures.slices import View
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.checkpoint_places import sha256_at
from prod9.models.run_folder import peak_memory_gib
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.patients import PatientPipeline
from prod9.pipelines.translation import TranslationPipeline
from prod9.system.folders import claimed, sweep
from prod9.training.finetuning import train_further
from prod9.volumes import read, write

_PIPELINES = {"maskgit": (MaskGiTPipeline, ControlPipeline), "maisi": (MAISIPipeline, MAISIControlPipeline)}
"""The pipelines of stages 2 and 3 of each family."""
_FORM = 2
"""Number of the form of the scores that are kept: those of another form are computed again."""


@dataclass(frozen=True)
class Reporter:
    """Callbacks for messages: ``say`` prints a line, ``bar`` opens a progress bar for a named step."""

    say: Callable[[str], None]
    bar: Callable[[str], Any]


def run_demo(plan: DemoPlan, *, report: Reporter, device: str = "auto") -> Metrics:
    """Do what is not done yet of ``plan`` and return its block of metrics.

    Writes runs and volumes under ``plan.run_dir``, the pictures, ``metrics.json`` and, last, ``report.html`` in
    ``plan.output_dir``.
    """
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    with claimed(plan.output_dir):
        _sweep(plan)
        block = _Demo(plan, report, device).run()
        return _finish(plan, report, block, time.monotonic() - began)


def _sweep(plan: DemoPlan) -> None:
    """Delete the unfinished files of a killed demo; each run sweeps its own folder."""
    sweep(plan.output_dir)
    sweep(plan.run_dir)
    for name in (
        "volumes",
        "scores",
        "translation",
        "control",
        "masks",
        PATIENTS,
        "removal",
    ):
        sweep(plan.run_dir / name, deep=True)


def _finish(plan: DemoPlan, report: Reporter, block: Metrics, seconds: float) -> Metrics:
    summary = {
        "seconds": round(add_seconds(plan, seconds), 1),
        "peak_rss_gib": round(peak_memory_gib(), 2),
        "patients": plan.num_patients,
        "seed": plan.seed,
    }
    block = {**summary, **block}
    write_metrics(plan, block)
    finish_demo(
        plan.output_dir,
        run=plan.run_dir / plan.names.generator,
        generated=plan.run_dir / "volumes",
        say=report.say,
        radiological=plan.radiological,
    )
    return block


class _Demo:
    """One run of a plan."""

    def __init__(self, plan: DemoPlan, report: Reporter, device: str) -> None:
        self.plan, self.report, self.device = plan, report, device
        self._segmenters: dict[int, Segmenter] = {}

    def run(self) -> Metrics:
        """Return the scores of the stages, and those of the packaged autoencoder before it was fine-tuned."""
        plan, names = self.plan, self.plan.names
        self._simulate()
        config = plan.stage1()
        if plan.family == "maskgit" and not plan.from_scratch:
            self._show_first(config)
        stage1 = self._train(config, names.autoencoder)
        stage2 = self._train(plan.stage2(stage1), names.generator)
        generated, labels = self._generate(stage2, plan.run_dir / "volumes")
        sets, autoencoder = load_sets(config), _autoencoder(stage1)
        label_map = config.data.label_map
        judges = Judges(autoencoder, sets, label_map, plan.seed, plan.judge_steps, self.report.say)
        stages: Metrics = {
            names.autoencoder: self._kept(
                names.autoencoder, [stage1], lambda: score_stage1(autoencoder, sets["train"], sets["test"])
            ),
            names.generator: self._kept(
                names.generator, [stage1, stage2], lambda: judges.score(generated, labels)
            ),
        }
        pictures = self._pictures(config, sets["test"])
        pictures.draw_overview(autoencoder, generated, labels)
        block: Metrics = {"stages": stages}
        if not plan.from_scratch:
            # The validations of the generator tell what fine-tuning brought.
            packaged = starter_weights(names.autoencoder)
            block["before_fine_tuning"] = self._kept(
                "before_fine_tuning", [stage1],
                lambda: {names.autoencoder: score_stage1(_autoencoder(packaged), sets["train"], sets["test"])},
            )  # fmt: skip
        if "translation" in plan.stages:
            stages["translation"] = self._translate(stage1, stage2, judges)
        if "control" in plan.stages:
            stages["control"] = self._control(stage2, judges)
        if "masks" in plan.stages:
            stages |= self._masks(stage2, judges, pictures)
        removed = {} if plan.family != "maskgit" else self._remove(stage1, stage2, sets["test"])
        if removed:
            block["removal"] = removed
        pictures.draw(stages, removed)
        return block

    def _show_first(self, config: AutoencoderConfig | MaisiVAEConfig) -> None:
        """Draw what the packaged weights do, so that there is a picture while the stages train."""
        plan = self.plan
        path = plan.output_dir / REMOVAL.file
        held_out = None if path.exists() else load_sets(config, ("test",))["test"]
        if held_out is None or not held_out.lesions.any():
            return
        weights, device = starter_weights(plan.names.generator), torch_device(self.device)
        generator = MaskGiTPipeline.from_checkpoint(weights, device=device)
        removed = remove_tumour(generator, held_out, folder=plan.run_dir / "removal", seed=plan.seed)
        self._pictures(config, held_out).draw({}, removed)
        self.report.say(f"First picture, by the packaged weights: {path}")

    def _pictures(self, config: AutoencoderConfig | MaisiVAEConfig, held_out: VolumeSet) -> DemoPictures:
        plan = self.plan
        return DemoPictures(
            output_dir=plan.output_dir, run_dir=plan.run_dir, held_out=held_out, label_map=config.data.label_map,
            view=View(spacing=config.data.spacing, radiological=plan.radiological),
        )  # fmt: skip

    def _kept(
        self, name: str, runs: Sequence[Path], score: Callable[[], Metrics], folder: Path | None = None
    ) -> Metrics:
        """Return ``score()``, or its earlier result for the same weights of ``runs`` if its volumes are still there."""
        plan, path = self.plan, self.plan.run_dir / "scores" / f"{name}.json"
        weights = [str(sha256_at(CheckpointManager.resolve(run))) for run in runs]
        key = content_key(
            *weights, plan.seed, plan.judge_steps, plan.volumes_per_modality, __version__, _FORM
        )
        if path.exists() and (folder is None or folder.is_dir()):
            kept = read_kept(path)
            if kept.get("key") == key:
                return kept["scores"]
        self.report.say(f"Scoring {name}")
        scores = without_nan(score())
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "scores": scores}, indent=2), encoding="utf-8")
        return scores

    def _simulate(self) -> None:
        plan = self.plan
        with self.report.bar(f"Simulating {plan.num_patients} patients") as progress:
            simulate_cohort(
                plan.data_dir,
                num_subjects=plan.num_patients,
                spacing_mm=plan.spacing_mm,
                seed=plan.seed,
                progress=progress,
            )
        # Read back at once, so that a folder that training would refuse is refused before anything is trained.
        find_cases(plan.data_dir)

    def _train(self, config: RunConfig, stage: str, *, init_from: Path | None = None) -> Path:
        weights = self.plan.initial_weights(stage) or init_from
        train_further(config, weights, name=stage, say=self.report.say, device=self.device)
        return Path(config.output_dir)

    def _generate(self, model: Path, folder: Path) -> tuple[Tensor, Tensor]:
        """Generate with ``model`` what ``folder`` lacks; return volumes ``[N 1 H W D]`` and labels."""
        pipeline = _PIPELINES[self.plan.family][0].from_checkpoint(model, device=torch_device(self.device))
        names, count = pipeline.label_names(), self.plan.volumes_per_modality
        folder.mkdir(parents=True, exist_ok=True)
        volumes: list[Tensor] = []
        with self.report.bar(f"Generating {len(names) * count} volumes") as progress:
            for name in names:
                paths = [folder / f"{name}_{k:04d}.nii.gz" for k in range(count)]
                start = next((k for k, path in enumerate(paths) if not path.exists()), count)
                if start < count:
                    for volume in pipeline.generate(
                        name, num_samples=count - start, start=start, seed=self.plan.seed, batch_size=8
                    ):
                        write(paths[volume.index], volume.data, volume.affine)
                        progress(len(volumes) + volume.index + 1, len(names) * count)
                volumes += [torch.from_numpy(read(path).data)[None] for path in paths]
                progress(len(volumes), len(names) * count)
        labels = torch.tensor([pipeline.label_map[name] for name in names]).repeat_interleave(count)
        return torch.stack(volumes), labels

    def _translate(self, stage1: Path, stage2: Path, judges: Judges) -> Metrics:
        # The label-conditional transformer has learnt the target's tokens: only the sources are left to learn.
        translator = self._train(self.plan.in_context(stage1), "stage2", init_from=stage2)
        refiner = self._train(self.plan.refiner(translator), "stage2_refiner")
        folder = self.plan.run_dir / "translation"

        def score() -> Metrics:
            with self.report.bar("Translating held-out patients") as progress:
                return score_translations(
                    TranslationPipeline.from_checkpoint(translator, device=torch_device(self.device)),
                    judges.sets["train"],
                    judges.sets["test"],
                    segmenter_of=lambda label: self._segmenter(judges, label),
                    folder=folder,
                    seed=self.plan.seed,
                    progress=progress,
                )

        return self._kept("translation", [stage1, translator, refiner], score, folder)

    def _segmenter(self, judges: Judges, label: int) -> Segmenter:
        """Return a segmenter trained on real training volumes of ``label``; each is trained once."""
        if label not in self._segmenters:
            real = judges.sets["train"].of(label)
            self._segmenters[label] = train_segmenter(
                real.volumes, real.lesions, steps=2 * self.plan.judge_steps, seed=self.plan.seed
            )
        return self._segmenters[label]

    def _class_segmenter(self, judges: Judges, modality: str) -> Segmenter:
        """Return a segmenter of every region of a tumour, trained on real training volumes of ``modality``."""
        real = judges.sets["train"].of(judges.label_map[modality])
        masks = region_masks(real.segs)
        return train_segmenter(real.volumes, masks, steps=2 * self.plan.judge_steps, seed=self.plan.seed)

    def _control(self, generator: Path, judges: Judges) -> Metrics:
        run = self._train(self.plan.stage3(generator), self.plan.names.control)
        folder = self.plan.run_dir / "control"

        def score() -> Metrics:
            self.report.say("Generating under the segmentations of held-out patients")
            return score_stage3(
                _PIPELINES[self.plan.family][1].from_checkpoint(run, device=torch_device(self.device)),
                judges,
                segmenter_of=lambda label: self._segmenter(judges, label),
                class_segmenter=self._class_segmenter(judges, MODALITIES[0]),
                folder=folder,
                seed=self.plan.seed,
            )

        return self._kept("control", [generator, run], score, folder)

    def _masks(self, generator: Path, judges: Judges, pictures: DemoPictures) -> Metrics:
        """Draw masks by models of label maps, and make patients from some of them where their models are trained."""
        plan, folder = self.plan, self.plan.run_dir / "masks"
        autoencoder = self._train(plan.masks_stage1(), "masks_stage1")
        run = self._train(plan.masks_stage2(autoencoder), "masks_stage2")
        masks = DemoMasks(run, plan.data_dir, folder, num=2 * plan.volumes_per_modality, seed=plan.seed)
        try:
            with self.report.bar(f"Drawing {masks.num} masks") as progress:
                draw = partial(masks.draw, torch_device(self.device), progress)
                scores = self._kept("masks", [autoencoder, run], draw, folder)
        except DataError as error:  # a smoke run has learnt no lesion yet
            self.report.say(f"No masks: {error}")
            return {}
        pictures.draw_masks(masks)
        if not {"translation", "control"} <= set(plan.stages):
            return {"masks": scores}
        made = self._make_patients(generator, masks, judges)
        pictures.draw_patients(plan.run_dir / PATIENTS, made["dice"])
        return {"masks": scores, PATIENTS: made}

    def _make_patients(self, generator: Path, masks: DemoMasks, judges: Judges) -> Metrics:
        runs = [generator, self.plan.run_dir / "stage2", self.plan.run_dir / self.plan.names.control]
        files = masks.segmentations()[: max(1, self.plan.volumes_per_modality // 4)]
        folder, segmenter_of = self.plan.run_dir / PATIENTS, partial(self._segmenter, judges)

        def make() -> Metrics:
            with self.report.bar(f"Making {len(files)} patients") as progress:
                pipeline = PatientPipeline.from_checkpoints(
                    *runs[:2], controls=runs[2:], device=torch_device(self.device)
                )
                return make_patients(
                    pipeline, files, folder, segmenter_of=segmenter_of, seed=self.plan.seed, progress=progress
                )

        return self._kept(PATIENTS, [*runs, masks.run], make, folder)

    def _remove(self, stage1: Path, stage2: Path, held_out: VolumeSet) -> Metrics:
        """Take the tumour out of a held-out scan; empty without a patient with one."""
        folder = self.plan.run_dir / "removal"
        if not held_out.lesions.any():
            return {}

        def remove() -> Metrics:
            generator = MaskGiTPipeline.from_checkpoint(stage2, device=torch_device(self.device))
            return remove_tumour(generator, held_out, folder=folder, seed=self.plan.seed)

        return self._kept("removal", [stage1, stage2], remove, folder)


def _autoencoder(path: Path) -> Autoencoder:
    return CheckpointManager.from_pretrained(path).network
