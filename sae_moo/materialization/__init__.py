"""From a recipe to weights.

`check` says whether a recipe fits the experts, `resolve` and `thresholds` settle what needs whole models, `plan` lines
up the work on a band of tensors (`merging` is one merge of it) and `engines` says who does it; `feed`, `values` and
`buffers` hold what is worked on (`staging` and `link` bring it to a GPU), `into_model` writes a live model, `parents`
keeps weights of candidates that will be merged again, `calibration` measures activations, `forms` says how merging is
done on a device; `ops` is the arithmetic.
"""
