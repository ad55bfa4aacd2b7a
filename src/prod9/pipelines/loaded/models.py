"""Models that are ready to be called, one class by what it makes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.stores.segmentations import check_classes
from prod9.errors import ConfigError
from prod9.modalities import known_as
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.inpainting import InpaintingPipeline
from prod9.pipelines.labels import AbstractLabelPipeline, GeneratedVolume
from prod9.pipelines.loaded.base import GeneratorModel, require_draw
from prod9.pipelines.loaded.base import Model as Model
from prod9.pipelines.loaded.volumes import Given, Result, volume_of, volume_on, volumes_by_label
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.reconstruction import ReconstructionPipeline
from prod9.pipelines.segmentation import PlacedSegmentation
from prod9.pipelines.translation import Decode, TranslationPipeline


class LabelModel(Model[AbstractLabelPipeline]):
    """Generates volumes of a modality or class; one of MaskGiT draws regions again, too.

    Example:
        >>> import prod9
        >>> model = prod9.load("demo/label", device="cpu")
        >>> (volume,) = model("flair", steps=2)
        >>> volume.data.shape, volume.label
        ((48, 56, 48), 'FLAIR')
        >>> volume.save("flair.nii.gz").name
        'flair.nii.gz'
    """

    usage = "call it as model(label=…, num_samples=1, seed=0)"

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self.pipeline.label_names()

    def __call__(
        self,
        label: str | int,
        *,
        num_samples: int = 1,
        seed: int = 0,
        steps: int | None = None,
        batch_size: int = 1,
    ) -> list[Result]:
        """Return volumes float32 ``[H W D]`` in [0, 1], RAS, on the model's grid.

        Sample k depends on ``seed + k`` and the label alone. Raises ConfigError for an unknown label.

        Args:
            label: a name in any case, one of its aliases, or a class label.
            num_samples: how many.
            seed: of the first.
            steps: of the sampler; None as trained.
            batch_size: samples drawn together.
        """
        require_draw(num_samples, seed, batch_size)
        pipeline = self._with_steps(steps)
        made = pipeline.generate(label, num_samples=num_samples, seed=seed, batch_size=batch_size)
        return [_result(volume) for volume in made]

    def inpaint(
        self,
        source: Given,
        region: Given,
        label: str,
        *,
        num_samples: int = 1,
        seed: int = 0,
        steps: int | None = None,
        blend: float = 2.0,
        resample: bool = False,
    ) -> list[Result]:
        """Return ``source`` with its region drawn again; every other voxel stays as it is, bit for bit.

        Raises ConfigError for a model of another family and an unknown label, DataError for a region that is empty,
        covers everything or lies elsewhere.

        Args:
            source: the volume.
            region: not 0 where to draw, on the voxels of ``source``, as an array alone always lies.
            label: modality of ``source``.
            num_samples: how many.
            seed: of the first.
            steps: of the sampler; None as trained.
            blend: voxels of the model's grid over which the border is blended.
            resample: bring a region on other voxels to those of ``source``.
        """
        require_draw(num_samples, seed)
        generator = self._with_steps(steps)
        if not isinstance(generator, MaskGiTPipeline):
            raise ConfigError(
                f"inpaint: expected a model of MaskGiT, got {self.name}, a {self.title.lower()}."
            )
        if not 0 <= blend < np.inf:
            raise ConfigError(f"blend: expected a number of voxels, at least 0, got {blend}.")
        name = generator.known_label(label)
        file = volume_of(source, "source", generator.placement.spacing)
        drawn = InpaintingPipeline(generator=generator, blend=blend).inpaint(
            file,
            volume_on(region, "region", file),
            name,
            num_samples=num_samples,
            seed=seed,
            resample=resample,
        )
        affine = file.header.affine
        return [
            Result(data=one.data, affine=affine, label=name, seed=one.seed, header=_of_file(file.header))
            for one in drawn
        ]


class TranslationModel(GeneratorModel[TranslationPipeline]):
    """Makes a missing modality of a patient from the others.

    Example:
        >>> import numpy as np
        >>> import prod9
        >>> model = prod9.load("demo/translate", device="cpu")
        >>> t1 = np.pad(np.random.default_rng(0).uniform(100, 200, (32, 40, 32)), 8)  # a path in real life
        >>> (flair,) = model(sources={"t1": t1}, target="FLAIR", steps=2)
        >>> flair.data.shape == t1.shape
        True
    """

    usage = "call it as model(sources={NAME: PATH, …}, target=…)"

    def __call__(
        self,
        *,
        sources: Mapping[str, Given],
        target: str,
        num_samples: int = 1,
        seed: int = 0,
        steps: int | None = None,
        decode: Decode = "sample",
        examples: Sequence[Mapping[str, Given]] = (),
        resample: bool = False,
        batch_size: int = 1,
    ) -> list[Result]:
        """Return ``target`` on the voxels, in the axes and in the intensity range of the first source.

        Raises ConfigError for unknown modalities and too few or too many sources, DataError for volumes that cannot be
        used.

        Args:
            sources: modality → volume of one patient; the names in any case, or aliases.
            target: the modality to make.
            num_samples: how many.
            seed: of the first.
            steps: of the sampler; None as trained.
            decode: ``sample``, or ``mean`` for the least error, smoother, and one volume.
            examples: other patients who have the target, as ``sources``; for models that were trained with some.
            resample: bring registered volumes on other voxels to those of the first.
            batch_size: samples drawn together.
        """
        require_draw(num_samples, seed, batch_size)
        if decode == "mean" and num_samples > 1:
            raise ConfigError(
                f"decode: expected sample for {num_samples} samples, got mean, of which there is one; leave "
                "num_samples out, or decode."
            )
        pipeline, known = self._with_steps(steps), self.labels
        placement = pipeline.placement
        target = known_as(str(target), known)
        files = volumes_by_label(sources, known, placement.spacing)
        pipeline.check(list(files), target, num_examples=len(examples))
        placed = placement.place(files, resample=resample)
        shown = [
            placement.place(volumes_by_label(one, known, placement.spacing), resample=resample).images
            for one in examples
        ]
        made = pipeline.translate(
            placed.images,
            target,
            head=placed.inside,
            num_samples=num_samples,
            seed=seed,
            decode=decode,
            examples=shown,
            batch_size=batch_size,
        )
        header = placed.reference
        return [
            Result(
                data=placed.restore(volume),
                affine=header.affine,
                label=target,
                seed=seed + index,
                header=_of_file(header),
            )
            for index, volume in enumerate(made.volumes)
        ]


class ControlModel(GeneratorModel[ControlPipeline | MAISIControlPipeline]):
    """Generates volumes whose lesions lie where a segmentation has them."""

    usage = "call it as model(label=…, seg=PATH)"

    def __call__(
        self,
        label: str,
        *,
        seg: Any = None,
        sources: Mapping[str, Any] | None = None,
        reference: Any = None,
        label_scheme: str = "auto",
        num_samples: int = 1,
        seed: int = 0,
        steps: int | None = None,
        batch_size: int = 1,
    ) -> list[Result]:
        """Return volumes float32 ``[H W D]`` in [0, 1], RAS, on the model's grid, where the segmentation lies.

        Raises ConfigError for an unknown label or a condition that the model does not take, DataError for a
        segmentation that cannot be used.

        Args:
            label: a modality, in any case, or one of its aliases.
            seg: path of a segmentation, or an array ``[H W D]`` of canonical labels on the model's grid.
            sources: for models that take source images, modality → path.
            reference: path of the scan on whose voxels ``seg`` lies.
            label_scheme: what the values of the file mean.
            num_samples: how many.
            seed: of the first.
            steps: of the sampler; None as trained.
            batch_size: samples drawn together.
        """
        require_draw(num_samples, seed, batch_size)
        pipeline = self._with_steps(steps)
        name = pipeline.generator.known_label(label)
        if seg is None or isinstance(seg, str) or hasattr(seg, "__fspath__"):
            nothing = seg is None and not sources
            placed = (
                None
                if nothing
                else pipeline.place(seg, reference=reference, label_scheme=label_scheme, sources=sources)
            )
        else:
            placed = _on_grid(seg, pipeline)
        made = pipeline.generate(name, seg=placed, num_samples=num_samples, seed=seed, batch_size=batch_size)
        return [_result(volume) for volume in made]


class AutoencoderModel(Model[ReconstructionPipeline]):
    """Passes volumes through the latent, to see what it keeps.

    Example:
        >>> import prod9
        >>> prod9.load("demo/autoencoder", device="cpu")
        <FSQ autoencoder 'demo/autoencoder', on cpu; call it as model(VOLUME)>
    """

    usage = "call it as model(VOLUME)"

    @property
    def labels(self) -> list[str]:
        """None: it takes volumes of any modality."""
        return []

    def __call__(self, volume: Given) -> list[Result]:
        """Return ``volume`` after a pass through the latent, on its own voxels.

        Raises ConfigError for what is no volume, DataError for one that cannot be used.
        """
        made = self.pipeline.reconstruct(volume_of(volume, "volume", self.pipeline.placement.spacing))
        header = made.header
        return [Result(data=made.data, affine=header.affine, label="reconstruction", header=_of_file(header))]


def _result(volume: GeneratedVolume) -> Result:
    return Result(data=volume.data, affine=volume.affine, label=volume.label, seed=volume.seed)


def _of_file(header: Any) -> Any:
    """Return a header whose geometry can be written back; None for that of an array."""
    return header if header.block else None


def _on_grid(seg: Any, pipeline: ControlPipeline | MAISIControlPipeline) -> PlacedSegmentation:
    generator = pipeline.generator
    try:
        labels = np.asarray(seg)
        whole = labels.shape == generator.grid and np.isin(labels, range(256)).all()
    except (TypeError, ValueError):  # a list of unequal rows
        labels, whole = np.zeros(0), False
    if not whole:
        raise ConfigError(
            f"seg: expected a path, or whole numbers on the model's grid of {generator.grid} voxels, got "
            f"{type(seg).__name__} of shape {labels.shape}; save it as NIfTI and give its path."
        )
    check_classes(labels, pipeline.num_mask_classes, Path("seg"))
    return PlacedSegmentation(labels.astype(np.uint8), generator.affine, "field", 0.0)
