"""Ask, execute, record, tell: the study is the only state, and resuming is replaying it.

`loop` is the study at work, `events` what it tells, `record` one trial, `trials` keeps them in Optuna, `journal` is
where that lies, `folder` what else lies there. `executor` says what evaluates: `local` in this process, `pool` by a
`crew` of workers. `migration` is what brings a study what others find.
"""
