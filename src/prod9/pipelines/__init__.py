"""Generation and reconstruction with trained models; no training loop, no Lightning."""
