"""Pure tensor kernels: how tensors are merged and what is pruned. No models, no recipes, no files."""
