"""The YAML, refused whole.

`document` reads a configuration and checks it, `sections` holds its keys, `consistency` what has to fit together,
`faults` says what is wrong in words.
"""
