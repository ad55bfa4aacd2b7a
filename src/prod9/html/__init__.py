"""HTML pages that open from disk without a network, with tables, charts and pictures inside one file."""
