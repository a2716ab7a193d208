"""What a mergekit configuration says of the output's tokens: tokenizer, rows of tokens, chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sae_moo.deploy.mergekit.document import AUTO
from sae_moo.deploy.mergekit.findings import Findings, shown
from sae_moo.errors import nearest
from sae_moo.experts.vocabulary import KEEP_BASE, REFUSE, UNION, Policy, TokenRow, Vocabulary
from sae_moo.files.marked_yaml import Key
from sae_moo.recipe import BASE

Reference = Callable[[Key, Any], str | None]
"""Reads a model as mergekit writes it."""

TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
}
"""Name -> template of a common format, where mergekit has one of that name."""
_ELSEWHERE = ("alpaca", "exaone", "mistral")  # its others


def read_vocabulary(
    findings: Findings, raw: Mapping[str, Any], names: Mapping[str, str], base: str | None, reference: Reference
) -> tuple[Policy, str | None]:
    """Read ``tokenizer_source`` or ``tokenizer``.

    Args:
        findings: gets what is wrong.
        raw: the file.
        names: model as the file has it -> name of an expert.
        base: ``base_model``: without one mergekit prefers nobody's rows.
        reference: reads a model.

    Returns:
        What the output's tokens are, and the name of the expert whose tokenizer it gets; None: not said.
    """
    key: Key = ("tokenizer_source",)
    source, section = raw.get("tokenizer_source"), raw.get("tokenizer")
    tokens: dict[str, TokenRow] = {}
    multiple: int | None = None
    if section is not None:
        if source is not None:
            findings.fault(("tokenizer",), "expected either tokenizer or tokenizer_source, got both")
        key = ("tokenizer", "source")
        if not isinstance(section, dict):
            findings.fault(("tokenizer",), f"expected a mapping with source, got {section!r}")
            return REFUSE, None
        findings.keys(("tokenizer",), section, ("source", "tokens", "pad_to_multiple_of"))
        source = section.get("source", UNION)
        tokens = _tokens(findings, section.get("tokens"), names, reference)
        multiple = section.get("pad_to_multiple_of")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            findings.fault(("tokenizer", "pad_to_multiple_of"), f"expected a whole number above 0, got {multiple!r}")
    if source is None:
        return REFUSE, None
    named: str | None = source if source in (UNION, BASE) else _name(findings, key, source, names, reference)
    if named is None or (named == BASE and not tokens and multiple is None):
        return KEEP_BASE, named
    wanted = Vocabulary(source=named, tokens=tokens, multiple=multiple, base_first=base is not None)
    return wanted, BASE if named == UNION else named


def _name(findings: Findings, key: Key, value: Any, names: Mapping[str, str], reference: Reference) -> str | None:
    model = reference(key, value)
    if model is not None and model not in names:
        findings.fault(key, f"expected one of the models, got {model}{nearest(model, names)}")
    return names.get(model) if model is not None else None


def _tokens(findings: Findings, found: Any, names: Mapping[str, str], reference: Reference) -> dict[str, TokenRow]:
    key: Key = ("tokenizer", "tokens")
    if found is not None and not isinstance(found, dict):
        findings.fault(key, f"expected a mapping of tokens, got {shown(found)}")
    rows = {}
    for token, entry in found.items() if isinstance(found, dict) else ():
        here: Key = (*key, str(token))
        source = entry.get("source") if isinstance(entry, dict) else None
        if source is None:
            findings.fault(here, f"expected {{source: MODEL}} or a kind of it, got {shown(entry)}")
            continue
        findings.keys(here, entry, ("source", "force"))
        force = entry.get("force", False)
        if not isinstance(force, bool):
            findings.fault((*here, "force"), f"expected true or false, got {force!r}")
        row = _row(findings, (*here, "source"), source, names, reference)
        rows[str(token)] = TokenRow(**row, force=force is True)
    return rows


def _row(findings: Findings, key: Key, source: Any, names: Mapping[str, str], reference: Reference) -> dict[str, Any]:
    """Read a model, ``{kind: zero}`` or ``{kind: model_token, model: ..., token or token_id: ...}``."""
    if not isinstance(source, dict) or "kind" not in source:
        return {"model": _name(findings, key, source, names, reference)}
    if source["kind"] == "zero":
        findings.keys(key, source, ("kind",))
        return {}
    token, row = source.get("token"), source.get("token_id")
    if source["kind"] != "model_token" or (isinstance(token, str) == (type(row) is int)):
        findings.fault(key, f"expected kind zero, or model_token with either token or token_id, got {source!r}")
        return {}
    findings.keys(key, source, ("kind", "model", "token", "token_id"))
    return {
        "model": _name(findings, (*key, "model"), source.get("model"), names, reference),
        "token": token,
        "row": row,
    }


def read_template(findings: Findings, value: Any) -> str | None:
    """Read ``chat_template``: a Jinja template, the name of one, or ``auto``."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and (value == AUTO or "{" in value):
        return value
    if value in TEMPLATES:
        return TEMPLATES[value]
    if value in _ELSEWHERE:
        findings.notes.append(f"chat_template: mergekit's own {value} is not here; the tokenizer keeps the one it has")
        return None
    known = ", ".join((AUTO, *TEMPLATES))
    findings.fault(("chat_template",), f"expected a Jinja template or one of {known}, got {value!r}")
    return None
