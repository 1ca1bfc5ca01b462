"""The Llama family's forward and backward pass written by hand for a CPU.

What it does differently from autograd over transformers, each measured in docs/performance.md: samples are
concatenated and never padded; projections that share an input are one matmul; LoRA's A matrices of such a group
too; attention is batched matmul; logits exist for completion tokens only; nothing is kept that backward can do
without.
"""
