"""How good an adapter is, against its base."""
