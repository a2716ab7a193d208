"""Files that are handed on; nothing here knows a task.

`formats` are the rows of what a model can be handed on as. An `order` is written by one of the `writers`, or by one of
an installed package. `stream` computes tensors one by one, `tensor_files` writes them in shards, `packing` keeps what
is not zero, `shrink` drops whole units, `estimate` says sizes beforehand, `surroundings` writes what lies beside the
weights, `card` describes them; `mergekit` reads and writes configurations of another tool.
"""
