"""Tasks and scores.

A `task` asks instances of a model: own items (`tasks`) or the harness's documents (`harness`, `lm_eval`). `batches` and
`generation` ask them, `evaluator` merges and scores one candidate after another, `racing` gives up early on those that
cannot win.
"""
