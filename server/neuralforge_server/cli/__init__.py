"""The command line of the coordinator: one file a command; the only place that catches."""
