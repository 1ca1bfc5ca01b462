"""Completions for editors: one base in memory, adapters that are swapped on it, HTTP and LSP on top."""
