"""What is in adapter folders: where they are, what they say, what their numbers look like; how far a run is. Never torch."""
