"""Several adapters of one base as one adapter: exact sums, approximations with their error, learnt weights."""
