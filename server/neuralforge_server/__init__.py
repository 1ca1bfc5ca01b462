"""The coordinator of a federation: it holds adapters and rounds, and never a line of anybody's code."""
