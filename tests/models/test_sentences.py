"""Texts that are encoded by their sentences have the tokens and offsets that they have as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.tokenizers
from interp.models.sentences import Sentences, may_cut
from interp.models.tokens import Tokens
from interp.tasks.haystack import fillers

CUT = ("gpt2", "smollm", "qwen")
SCRAPS = st.sampled_from(
    [
        *fillers()[:30],
        " ",
        "  ",
        "\n",
        "\n\n",
        ". ",
        "? ",
        ": ",
        ", ",
        "A",
        " Zoe",
        "é",
        "e\u0301",
        "12",
        "'s",
        "…",
        "</s>",
        "<s>",
    ]
)
TEXTS = st.lists(SCRAPS, min_size=1, max_size=12).map("".join)


def backend(kind: str) -> Any:
    return tests.tokenizers.tokens(kind).hf.backend_tokenizer


@pytest.mark.parametrize("kind", CUT)
@settings(max_examples=150)
@given(text=TEXTS)
def test_same_tokens_and_offsets_as_the_whole(kind: str, text: str) -> None:
    whole = backend(kind).encode(text)
    cut = Sentences(backend(kind))
    for _ in range(2):  # from the tokenizer, and from memory
        assert cut.encode(text) == (tuple(whole.ids), tuple(whole.offsets))


@pytest.mark.parametrize("kind", tests.tokenizers.KINDS)
def test_only_where_a_token_begins_at_every_cut(kind: str) -> None:
    assert Sentences(backend(kind)).able == (kind in CUT)


def test_the_default_model_is_cut(smollm2_path: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    assert Sentences(tokenizer.backend_tokenizer).able
    text = "\n\n".join(fillers()) + " Question: Who?\nAnswer: Ann. Then 12,345 More!"
    whole = tokenizer(text, return_offsets_mapping=True)
    encoded = Tokens(tokenizer).encode(text)
    assert encoded.ids == tuple(whole["input_ids"])
    assert encoded.offsets == tuple(map(tuple, whole["offset_mapping"]))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
        ("pre_tokenizer", None),
        ("post_processor", {"type": "ByteLevel", "trim_offsets": True}),
        ("model", {"type": "Unigram"}),
        ("added_tokens", [{"content": "<x>", "lstrip": True, "rstrip": False, "single_word": False}]),
        ("added_tokens", [{"content": ". X", "lstrip": False, "rstrip": False, "single_word": False}]),
    ],
)
def test_what_rules_a_tokenizer_out(part: str, value: Any) -> None:
    state = json.loads(backend("gpt2").to_str())
    assert may_cut(state)
    assert not may_cut({**state, part: value})


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.models.sentences._MOST", 5)
    cut = Sentences(backend("gpt2"))
    for i in range(20):
        cut.encode(f"One. Two {i}. Three {i}.")
        assert len(cut._known) <= 5


@pytest.mark.parametrize("kind", tests.tokenizers.KINDS)
def test_what_the_transformers_class_gives(kind: str) -> None:
    """Also with truncation left on by somebody, and with special tokens to be split."""
    tokens = tests.tokenizers.tokens(kind)
    text = "The road was wet. Nobody minded, Ann said. </s> So it goes."
    want = tokens.hf(text, return_offsets_mapping=True)
    for leave in (lambda: None, lambda: tokens.hf.backend_tokenizer.enable_truncation(4)):
        leave()
        encoded = tokens.encode(text)
        assert encoded.ids == tuple(want["input_ids"])
        assert encoded.offsets == tuple(map(tuple, want["offset_mapping"]))
