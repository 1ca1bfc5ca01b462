"""The command line: one file a command. Only here are errors caught and lines printed."""
