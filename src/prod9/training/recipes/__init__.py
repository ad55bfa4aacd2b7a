"""What each stage trains, on what, and what of it is measured: a recipe per stage, without Lightning."""
