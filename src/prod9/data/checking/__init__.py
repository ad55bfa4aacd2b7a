"""Looks a dataset over before hours are spent on it: headers in seconds, voxels on request. No torch."""
