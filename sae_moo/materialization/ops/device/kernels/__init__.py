"""The kernels, in Triton.

`loading` says how elements are found, read and rounded; `elementwise` holds steps and prunings, `counting` exact
selection, `reducing` sums, `lines` what goes by lines of a matrix.
"""
