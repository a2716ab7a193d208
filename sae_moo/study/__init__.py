"""Ask, execute, record, tell: the study is the only state, and resuming is replaying it.

`loop` is the study at work, `record` one trial, `trials` keeps them in Optuna, `journal` is where that lies, `folder`
what else lies there; `local` evaluates in this process.
"""
