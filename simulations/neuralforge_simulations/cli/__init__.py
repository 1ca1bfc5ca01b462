"""The command line `nf-sim`."""
