"""How many deltas become one adapter: one method a file, its paper in its docstring."""
