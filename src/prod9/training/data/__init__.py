"""Lightning data modules, and how volumes are encoded for stages 2 and 3."""
