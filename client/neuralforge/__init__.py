"""NeuralForge on a developer's machine: datasets, base models, LoRA training, evaluation."""

from neuralforge_common import __version__

__all__ = ["__version__"]
