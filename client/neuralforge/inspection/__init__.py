"""What is in adapter folders: where they are, what they say, what their numbers look like. Never torch."""
