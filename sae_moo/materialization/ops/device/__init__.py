"""The arithmetic of merging and pruning on a CUDA device: one launch for a whole band of tensors.

`engine` is what a plan calls; `writing` lines up what is to be written by kernel, `cuts` finds thresholds, `sums` adds
up, `tables` says where the tensors of a launch lie; `kernels` are the launches themselves.

Per-tensor numbers that are found here (thresholds, growths, factors, zeros) stay on the device; the host fetches them
once a candidate. The bits are those of the plain path: sums run over the operands in order, no product is fused with a
sum, divisions and square roots are correctly rounded. Triton's interpreter runs the same kernels on the CPU, which is
how they are tested where there is no card.
"""
