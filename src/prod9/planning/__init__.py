"""Configurations that fit a dataset and a device, and the resources that they need. Imports no torch."""
