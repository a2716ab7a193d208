"""Tasks and scores.

A `task` asks instances of a model: own items (`tasks`), as a row of `kinds` says, or the harness's documents
(`harness`, `lm_eval`); kinds of installed packages are bound to their version (`guests`). `batches` and `writing`
ask them, `evaluator` merges and scores one candidate after another, `racing` gives up early on those that cannot win.
"""
