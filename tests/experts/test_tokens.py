from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.tokens import same_files, token_list

TOKENS = ["<s>", "</s>", "a", "b", "ab", "Ġa", "ĠÃ¤"]  # ``ĠÃ¤`` is the three bytes of " ä"
CHAT = {"<|im_start|>": 7, "<|im_end|>": 8}
ROWS = 10
EMBEDDINGS = "model.embed_tokens.weight"
RAW = [b"<s>", b"</s>", b"a", b"b", b"ab", b" a", " ä".encode()]


def text_of(document):
    return json.dumps(document, ensure_ascii=False).encode()


def as_tokenizer_json(chat):
    """A tokenizer.json whose vocabulary is a mapping."""
    added = [{"id": row, "content": token, "special": True} for token, row in chat.items()]
    vocabulary = {token: row for row, token in enumerate(TOKENS)}
    return {"tokenizer.json": text_of({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added})}


def as_unigram(chat):
    added = [{"id": row, "content": token, "special": True} for token, row in chat.items()]
    vocabulary = [[token, -1.0] for token in TOKENS]
    return {"tokenizer.json": text_of({"model": {"type": "Unigram", "vocab": vocabulary}, "added_tokens": added})}


def as_json_beside_a_decoder(chat):
    return as_tokenizer_json({}) | decoder(chat)


def decoder(chat):
    contents = {str(row): {"content": token, "special": True} for token, row in chat.items()}
    return {"tokenizer_config.json": text_of({"added_tokens_decoder": contents})}


def as_vocab_json(chat):
    vocabulary = {token: row for row, token in enumerate(TOKENS)}
    return {"vocab.json": text_of(vocabulary), "merges.txt": b"a b\n", "added_tokens.json": text_of(chat)}


def as_vocab_json_with_a_decoder(chat):
    return {name: content for name, content in as_vocab_json({}).items() if name != "added_tokens.json"} | decoder(chat)


def as_vocab_txt(chat):
    return {"vocab.txt": ("\n".join(TOKENS) + "\n").encode(), "added_tokens.json": text_of(chat)}


def as_sentencepiece(chat):
    """The message of a SentencePiece model: pieces of text, score and kind, and settings that are passed over."""
    content = b""
    for token in TOKENS:
        text = token.encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf" + b"\x18\x01"
        content += b"\x0a" + bytes([len(piece)]) + piece
    content += b"\x12\x03\x18\x80\x7d"
    return {"tokenizer.model": content, "added_tokens.json": text_of(chat)}


def as_tiktoken(chat):
    lines = [base64.b64encode(token) + f" {row}\n".encode() for row, token in enumerate(RAW)]
    return {"qwen.tiktoken": b"".join(lines)} | decoder(chat)


def as_tiktoken_under_another_name(chat):
    return {"tokenizer.model": as_tiktoken(chat)["qwen.tiktoken"]} | decoder(chat)


FORMS = [
    as_tokenizer_json,
    as_unigram,
    as_json_beside_a_decoder,
    as_vocab_json,
    as_vocab_json_with_a_decoder,
    as_vocab_txt,
    as_sentencepiece,
    as_tiktoken,
    as_tiktoken_under_another_name,
]
EXPECTED = {token: row for row, token in enumerate(TOKENS)} | CHAT


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes a tiny model beside any files of a tokenizer."""

    def written(name, files, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((zoo.checkpoint("base") / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": ROWS}))
        stored = load_file(zoo.checkpoint("base") / "model.safetensors")
        rows = torch.randn(ROWS, stored[EMBEDDINGS].shape[1], generator=torch.Generator().manual_seed(seed))
        changed = {key: rows if key in (EMBEDDINGS, "lm_head.weight") else each for key, each in stored.items()}
        save_file({key: each.clone() for key, each in changed.items()}, folder / "model.safetensors")
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return str(folder)

    return written


def test_no_tokenizer_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert token_list(tmp_path) is None


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_tokens_are_read_from_files_of_every_form(tmp_path, form):
    for name, content in form(CHAT).items():
        (tmp_path / name).write_bytes(content)
    assert token_list(tmp_path) == EXPECTED


def test_tokens_of_mistrals_own_format(tmp_path):
    vocabulary = [{"rank": row, "token_bytes": base64.b64encode(token).decode()} for row, token in enumerate(RAW[2:])]
    document = {
        "config": {"default_num_special_tokens": 3, "default_vocab_size": 7},
        "vocab": vocabulary,
        "special_tokens": [{"rank": 0, "token_str": "<s>"}, {"rank": 2, "token_str": "[INST]"}],
    }
    (tmp_path / "tekken.json").write_bytes(text_of(document))
    expected = {"<s>": 0, "<SPECIAL_1>": 1, "[INST]": 2, "a": 3, "b": 4, "ab": 5, "Ġa": 6}
    assert token_list(tmp_path) == expected  # what lies behind the size is none


def test_the_zoo_is_read_as_transformers_reads_it():
    folder = zoo.checkpoint("base")
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert token_list(folder) == loaded.get_vocab()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [*((as_tokenizer_json, form) for form in FORMS), *((form, as_tokenizer_json) for form in FORMS[3:7])],
    ids=lambda form: form.__name__,
)
def test_tokens_in_another_order_are_never_mixed_up(saved, ours, theirs):
    turned = {"<|im_start|>": 8, "<|im_end|>": 7}
    base, expert = saved("base", ours(CHAT)), saved("expert", theirs(turned), seed=1)
    with pytest.raises(
        InputError, match=r"expert: 2 tokens of the base \('<\|im_end\|>', '<\|im_start\|>'\) elsewhere"
    ):
        ExpertPool.open(base, {"expert": expert})
    for policy in ("base", "union"):
        pool = ExpertPool.open(base, {"expert": expert}, vocabulary=policy)
        rows, stored = pool.load("expert", EMBEDDINGS), load_file(f"{expert}/model.safetensors")[EMBEDDINGS]
        assert torch.equal(rows[:7], stored[:7])
        assert torch.equal(rows[[7, 8]], stored[[8, 7]])
    ExpertPool.open(base, {"same": saved("same", theirs(CHAT))})


def implicit(*special):
    """A tokenizer whose special tokens are named, without a row: transformers gives them the next ones in order."""
    folder = zoo.checkpoint("base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return {
        "tokenizer.json": (folder / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": text_of(settings),
        "special_tokens_map.json": text_of({"additional_special_tokens": [*special]}),
    }


def test_special_tokens_that_files_name_without_a_row(tmp_path):
    folders = {"one": implicit("<a>", "<b>"), "twin": implicit("<a>", "<b>"), "other": implicit("<b>", "<a>")}
    for name, files in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((zoo.checkpoint("base") / "config.json").read_bytes())
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    one, other = token_list(tmp_path / "one"), token_list(tmp_path / "other")
    assert (one["<a>"], one["<b>"]) == (other["<b>"], other["<a>"]) == (512, 513)
    assert same_files(tmp_path / "one", tmp_path / "twin")
    assert not same_files(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    "files",
    [
        as_vocab_json(CHAT) | {"special_tokens_map.json": b'{"pad_token": "<nowhere>"}'},
        {"sentencepiece.bpe.model": b"\x0a\x03\x0a\x01a"},
        {"qwen.tiktoken": as_tiktoken({})["qwen.tiktoken"]},
        {"tokenizer.model": b"\x0a\xff\xff\xff"},
        {"tokenizer.model": b""},
        {"tokenizer.json": b"[]"},
        {"tokenizer.json": b'{"model": {"vocab": 3}}'},
        {"vocab.json": b"not JSON"},
        {"tekken.json": b"{}"},
        {"added_tokens.json": b"{}"},
        {"tokenizer_config.json": b'{"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": "x.Mine"}}'},
    ],
    ids=lambda files: next(iter(files)),
)
def test_tokens_that_cannot_be_compared_are_refused_unless_files_are_the_same(saved, files):
    base = saved("base", as_tokenizer_json(CHAT))
    odd, twin = saved("odd", files, seed=1), saved("twin", files, seed=2)
    with pytest.raises(InputError) as caught:
        ExpertPool.open(base, {"odd": odd})
    text = str(caught.value)
    assert "odd: its tokens cannot be compared with those of the base: " in text
    assert "position takes rows as they lie" in text
    assert len(text.splitlines()) == 2
    with pytest.raises(InputError, match=r"odd: models\.vocabulary: base needs the tokens"):
        ExpertPool.open(base, {"odd": odd}, vocabulary="base")
    ExpertPool.open(base, {"odd": odd}, vocabulary="position")
    if "added_tokens.json" not in files:
        assert same_files(Path(odd), Path(twin))
        ExpertPool.open(odd, {"twin": twin})
    with pytest.raises(InputError, match="cannot be compared"):
        ExpertPool.open(odd, {"expert": base})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_files_that_differ_in_what_they_say_of_tokens_are_not_the_same(tmp_path, form):
    for name, chat in {"one": CHAT, "twin": CHAT, "other": {"<|im_start|>": 8, "<|im_end|>": 7}}.items():
        (tmp_path / name).mkdir()
        for file, content in form(chat).items():
            (tmp_path / name / file).write_bytes(content)
    assert same_files(tmp_path / "one", tmp_path / "twin")
    assert not same_files(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("row", [float("inf"), float("nan"), 3.5, -1, True, None, "x", [1]])
@pytest.mark.parametrize("where", ["vocab", "added", "vocab.json"])
def test_a_row_is_a_whole_number(tmp_path, where, row):
    """A row that is rounded would be another token's."""
    if where == "vocab.json":
        (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": row}))
    else:
        vocabulary = {"a": 0, "b": row if where == "vocab" else 1}
        added = [{"id": row, "content": "c"}] if where == "added" else []
        document = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added}
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"(tokenizer|vocab)\.json: expected a tokenizer: "):
        token_list(tmp_path)
