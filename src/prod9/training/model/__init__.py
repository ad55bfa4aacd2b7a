"""Building networks from configurations, and loading them from files."""
