"""Models on disk: checkpoints and adapters of one base, read tensor by tensor.

`checkpoint` reads a folder, `adapters` compose weights over the base, `vocabulary` matches tokens, `pool` holds base
and experts together, `resident` is what of them stays on a GPU, `live` is the transformers model that candidates are
written into, `anatomy` names its parts. `submodels` tells the text model from towers and projectors, `code` finds code
that lies beside weights, `tokenizer_files` is what is handed on as a tokenizer.
"""
