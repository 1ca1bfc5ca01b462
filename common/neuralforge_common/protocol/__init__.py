"""Generated from protos/ by scripts/generate_protos.py: change those, not these."""
