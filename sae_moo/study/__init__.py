"""Ask, execute, record, tell: the study is the only state, and resuming is replaying it.

`loop` is the study at work, `storage` keeps its trials in Optuna, `local` evaluates in this process.
"""
