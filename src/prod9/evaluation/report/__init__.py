"""A report on a run as one HTML file: training, scores, generated volumes, and the copy audit."""
