"""Networks that judge volumes: classifiers, segmenters, feature extractors."""
