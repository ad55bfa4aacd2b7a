"""The search for the settings of a sampler: quality on validation patients against cost."""
