"""Federations on one machine: the real client and the real coordinator, virtual developers."""
