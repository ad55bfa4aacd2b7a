"""Stage 3: what steers a frozen generator of either family."""
