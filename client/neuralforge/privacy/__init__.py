"""Differential privacy of the client: units, sampling, the private step, the ledger of what was spent."""
