"""Arithmetic on tensors: merge methods, pruning and measures, compiled for the CPU and in plain torch."""
