"""Search for copies of training patients among generated volumes."""
