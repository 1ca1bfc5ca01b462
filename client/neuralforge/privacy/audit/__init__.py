"""Attacks on our own private training: lower bounds on ε to hold against what is claimed."""
