"""Source code to training examples: read, redact, extract, deduplicate, split."""
