"""``prod9 augment``: from a folder of patients to a data set with audited synthetic ones, in one command."""
