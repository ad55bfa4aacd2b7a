"""Networks that scores are computed with: classifiers, segmenters, feature extractors."""
