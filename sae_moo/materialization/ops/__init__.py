"""Arithmetic on tensors.

`steps` and `prune` say what is computed, element by element; `merge`, `spherical`, `task_vectors` are the methods that
come to such steps, by way of `questions` about whole tensors; `measure` and `select` answer them. `jobs` is what is
written, `engine` who writes it: by plain torch (`write`), by compiled loops for the CPU (`fused`, `kernels`), or by the
kernels for a GPU (`device`). `deferred` are numbers that stay there.
"""
