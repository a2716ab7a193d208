"""The zoo's tokenizer: byte-level BPE, single digits, a blank belongs to the token after it.

A token never spans the blank between prompt and answer, so tokenizing the two apart and joining the ids equals
tokenizing the joined text. Nothing is added by itself: no begin token, no end token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
PAD, END = "<pad>", "<end>"
PAD_ID, END_ID = 0, 1


def build(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from texts.

    Args:
        texts: What the models will read; the order matters only between pairs that are equally frequent.

    Returns:
        A tokenizer of `VOCABULARY` tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as ``transformers.AutoTokenizer`` reads it.

    Args:
        tokenizer: What to write.
        folder: An existing folder; ``tokenizer.json`` and ``tokenizer_config.json`` in it are replaced.
    """
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
