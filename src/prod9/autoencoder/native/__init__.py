"""Faster layers with the weights and the results of MONAI's: convolutions, norms, the quantiser."""
