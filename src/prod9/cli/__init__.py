"""The commands; heavy imports happen inside them, so that ``--help`` answers at once."""
