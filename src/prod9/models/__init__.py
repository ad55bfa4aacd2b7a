"""Networks from configurations, and the files that hold them."""
