"""Tokens of a prompt from tokens of its sentences, each of which is encoded once and remembered.

A byte-level tokenizer cuts a text into words by a regular expression before anything is merged. Where a space follows
a punctuation mark and a capital letter follows the space, the expressions of the GPT-2, Llama 3 and Qwen families begin
a word, whatever stands around: so the text may be cut there, and its parts encoded one by one, with the same result.
Other tokenizers are not cut. Generators that put thousands of prompts together from the same prose spend most of their
time in the tokenizer without this.
"""

from __future__ import annotations

import json
import re
from typing import Any

_CUT = re.compile(r"(?<=[.?!:;,]) (?=[A-Z])")
_MOST = 4000
"""Sentences that are remembered."""

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_WORDS = (_QWEN, _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
"""Expressions that cut words, beside GPT-2's, which the byte-level pre-tokenizer has built in."""

Parts = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


def may_cut(state: dict[str, Any]) -> bool:
    """Whether a tokenizer, as its JSON has it, begins a token at every such space, whatever stands around it."""
    pre = state["pre_tokenizer"] or {"type": "none"}
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    regexes = 0
    for step in steps:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            regexes += step["use_regex"]
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            regexes += step["pattern"].get("Regex") in _WORDS
        elif step["type"] != "Digits":
            return False
    plain = all(
        not (t["lstrip"] or t["rstrip"] or t["single_word"]) and " " not in t["content"]
        for t in state["added_tokens"]
    )
    normal = state["normalizer"] is None or state["normalizer"]["type"] == "NFC"
    # Offsets without the space in front keep it at the start of a text.
    after = state["post_processor"] or {}
    trims = any(p.get("trim_offsets") for p in (after, *after.get("processors", ())))
    return bool(regexes) and plain and normal and not trims and state["model"]["type"] == "BPE"


class Sentences:
    """The encoding of texts by their sentences.

    Args:
        backend: a `tokenizers.Tokenizer` without truncation and padding.
    """

    def __init__(self, backend: Any):
        self._backend = backend
        self._known: dict[str, Parts] = {}
        self._lead = tuple(backend.encode("").ids)
        whole, bare = backend.encode("A").ids, backend.encode("A", add_special_tokens=False).ids
        # Special tokens in front can be put there by hand; others cannot.
        self.able = may_cut(json.loads(backend.to_str())) and whole == [*self._lead, *bare]

    def encode(self, text: str) -> Parts:
        """Ids and offsets of the whole text."""
        ids, offsets = list(self._lead), [(0, 0)] * len(self._lead)
        at = 0
        for end in (*(m.start() for m in _CUT.finditer(text)), len(text)):
            part_ids, part_offsets = self._part(text[at:end])
            ids += part_ids
            offsets += [(a + at, b + at) for a, b in part_offsets]
            at = end
        return tuple(ids), tuple(offsets)

    def _part(self, text: str) -> Parts:
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            out = self._backend.encode(text, add_special_tokens=False)
            known = self._known[text] = tuple(out.ids), tuple(out.offsets)
        return known
