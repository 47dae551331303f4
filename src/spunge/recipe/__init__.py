"""The recipe: one experiment as settings, read from YAML, and the experiments that ship with Spunge."""
