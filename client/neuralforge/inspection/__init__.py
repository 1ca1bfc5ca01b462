"""What is in adapter folders, what their numbers look like; how far a run is. Never torch."""
