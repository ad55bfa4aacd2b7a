"""What scores are called in a report: in words, where files have keys."""

import re

TITLES = {
    "accuracy": "accuracy",
    "classifier_accuracy": "accuracy of the classifier on real volumes",
    "coverage": "coverage: share of real volumes that have a generated one near them",
    "crps": "CRPS (error of the samples as a distribution)",
    "density": "density: generated volumes near real ones",
    "dice": "Dice",
    "diversity": "diversity: distance between generated volumes",
    "diversity_ratio": "diversity of generated volumes, that of scans being 1",
    "frechet": "Fréchet distance",
    "frechet_2d": "Fréchet distance of slices",
    "frechet_3d": "Fréchet distance of volumes",
    "frechet_principal": "Fréchet distance in the main directions",
    "histogram_distance": "distance of intensity histograms",
    "inception_score": "inception score",
    "kid": "kernel distance (KID)",
    "kid_standardised": "kernel distance (KID), features standardised",
    "lpips": "LPIPS",
    "mae": "mean absolute error",
    "mean_error": "absolute error of the mean",
    "ms_ssim": "MS-SSIM",
    "precision": "precision: share of generated volumes that lie among real ones",
    "psnr": "PSNR",
    "psnr_mean": "PSNR of the mean of the samples",
    "psnr_samples": "PSNR of single samples",
    "radiomic_distance": "distance of radiomic features",
    "recall": "recall: share of real volumes that lie among generated ones",
    "spectrum_distance_db": "distance of spectra",
    "ssim": "SSIM",
    "noise_level": "noise level",
    "noise_ratio": "noise level, that of scans being 1",
    "edge_ratio": "sharpness of tissue borders, that of scans being 1",
    "spread_correlation": "correlation of spread with the error of the mean",
    "spread_ratio": "spread over error of the mean",
    "calibration_error": "mean difference of coverage and nominal level",
    "width_90": "width of the 90% interval",
    "spectrum_ratio": "distance of spectra of samples over that of their mean",
    "dice_steered": "Dice with what was asked for",
    "dice_real": "Dice in real scans",
    "dice_reconstructions": "Dice in reconstructions of real scans",
    "tumour_agreement": "Dice of tumours found in both modalities",
    "mutual_information": "mutual information of both modalities",
    **{f"coverage_{level}": f"coverage of the {level}% interval" for level in (50, 80, 90, 95)},
}
"""Metric → title. Other keys are shown with spaces."""
_ENDINGS = {
    "_denoised": ", both sets denoised alike",
    "_brasyn": ", scaled as in the BraTS synthesis challenge",
}
_EXTRACTORS = {
    "autoencoder": "features of the model's own autoencoder",
    "random": "features of a random network",
    "classifier": "features of a classifier of modalities",
    "radiomics": "radiomic features",
}
_NAMED = re.compile(r"^(autoencoder|random|classifier)-[0-9a-f]+")
_HASH = re.compile(r"-[0-9a-f]{8,}$")
_REGIONS = {"whole": "whole volume", "whole_tumour": "whole tumour", "tumour_core": "tumour core"}


def title(metric: str) -> str:
    """Return the words for a metric's key."""
    for ending, words in _ENDINGS.items():
        if metric.endswith(ending) and metric not in TITLES:
            return title(metric.removesuffix(ending)) + words
    return TITLES.get(metric) or spaced(metric)


def extractor(name: str) -> str:
    """Return the words for an extractor, without the hash of its weights, which the files hold."""
    name = name.removesuffix("_denoised")
    if name in _EXTRACTORS:
        return _EXTRACTORS[name]
    found = _NAMED.match(name)
    return _EXTRACTORS[found[1]] if found else f"features of {_HASH.sub('', name)}"


def embedding(name: str) -> str:
    """Return the words for what an audit compares."""
    return {"voxels": "voxels of the head", "latents": "latents of the autoencoder"}.get(
        name.split("-")[0], name
    )


def region(name: str) -> str:
    """Return the words for a region."""
    return _REGIONS.get(name, spaced(name))


def spaced(key: str) -> str:
    """Return a key as words."""
    return key.replace("_", " ").replace("/", ", ")
