"""`prod9 data`."""
