"""A training run's configuration: schema, YAML with line marks, and the loader that names every fault at once."""
