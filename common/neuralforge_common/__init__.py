"""What every NeuralForge program shares: adapters, configuration, errors. Never imports torch."""

__version__ = "0.1.0"
