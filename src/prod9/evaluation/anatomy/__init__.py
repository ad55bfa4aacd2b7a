"""Whether generated volumes show the anatomy they were asked for, as segmenters trained on real volumes see it."""
