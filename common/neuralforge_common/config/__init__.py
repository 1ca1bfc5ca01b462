"""Configurations: schemas, YAML with line marks, and the one reader that names every fault at once."""
