"""Sets of volumes: their members, and what distributions of them are compared by."""
