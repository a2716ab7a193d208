"""From a recipe to weights.

`check` says whether a recipe fits the experts, `resolve` settles thresholds of whole models, `plan` lines up the steps
of a tensor, `feed` and `buffers` hold what they work on (`staging` and `link` bring it to a GPU), `into_model` writes a
live model, `parents` keeps weights of candidates that will be merged again, `calibration` measures activations, `forms`
says how merging is done on a device; `ops` is the arithmetic.
"""
