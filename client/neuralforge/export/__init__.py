"""Adapters for other programs: a stock PEFT folder, a model with the adapter merged in, a GGUF LoRA file."""
