"""From scans as a clinic has them to scans on one grid: registration, atlas, skull stripping, and the way back."""
