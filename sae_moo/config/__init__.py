"""The YAML, refused whole.

`document` reads a configuration and checks it, `sections` holds the keys that nobody else declares, `consistency` what
has to fit together, in `drafts` of what could be read, `faults` says what is wrong in words.
"""
