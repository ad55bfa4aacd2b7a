"""MONAI's layers with its weights and its numbers, faster: convolutions, norms, the quantiser."""
