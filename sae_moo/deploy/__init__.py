"""Files that are handed on; nothing here knows a task.

`stream` computes tensors one by one, `tensor_files` writes them in shards, `packing` keeps what is not zero, `shrink`
drops whole units, `estimate` says sizes beforehand, `surroundings` writes what lies beside the weights, `card`
describes them; `mergekit` reads and writes configurations of another tool.
"""
