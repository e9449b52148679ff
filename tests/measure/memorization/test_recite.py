"""What a model recites: one forced pass against plain greedy decoding, on every family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.inject import Fit, inject
from interp.measure.memorization.objective import loss
from interp.measure.memorization.recite import forced, levenshtein, recite, screen
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks.memorized import TextItem
from interp.tasks.passages import CONTROLS, Passage, passages
from tests.subjects import ALL, subject
from tests.tiny import byte_tokenizer, tiny


def _greedy(model: CausalLM, ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The naive loop: one whole forward pass a token, no padding and no cache."""
    out = list(ids)
    with torch.no_grad():
        for _ in range(n):
            logits = model.hf(torch.tensor([out])).logits[0, -1]
            out.append(int(logits.argmax()))
    return tuple(out[len(ids) :])


def _items(model: CausalLM) -> list[TextItem]:
    """Sequences of which the model recites all, the first 3 tokens, or a part behind a wrong token."""
    generator = torch.Generator().manual_seed(5)
    out = []
    for i, (length, cut) in enumerate([(4, None), (9, 3), (6, 0), (12, 5)]):
        start = tuple(torch.randint(0, 256, (length,), generator=generator).tolist())
        suffix = list(_greedy(model, start, 8))
        if cut is not None:
            suffix[cut] = (suffix[cut] + 1) % 256
        out.append(TextItem(f"i{i}", (*start, *suffix), length, group="a" if i % 2 else "b", exposures=i))
    return out


@pytest.mark.parametrize("family", ALL)
def test_one_forced_pass_tells_what_greedy_decoding_recites(family: str) -> None:
    model = subject(family)
    items = _items(model)
    table = recite(model, items).set_index("name")
    assert table["run"].tolist() == [8, 3, 0, 5]
    assert table["exact"].tolist() == [1, 0, 0, 0]
    for item in items:
        said = _greedy(model, item.ids[: item.prefix], 8)
        row = table.loc[item.name]
        assert row["accuracy"] == np.mean([a == b for a, b in zip(said, item.suffix, strict=True)])
        assert row["similarity"] == max(0, 1 - levenshtein(said, item.suffix) / 8)
    with torch.no_grad():
        assert np.allclose(table["nll"], loss(model, items).numpy(), atol=1e-4)


def test_hits_count_true_tokens_that_are_likeliest_after_the_true_ones() -> None:
    model = subject("llama")
    item = _items(model)[1]
    with torch.no_grad():
        said = model.hf(torch.tensor([item.ids])).logits[0].argmax(-1).tolist()
    at = range(item.prefix, len(item.ids))
    expected = np.mean([said[i - 1] == item.ids[i] for i in at])
    assert 0 < expected < 1
    assert recite(model, [item])["hits"].tolist() == [expected]


def test_without_generation_only_what_is_known_is_told() -> None:
    model = subject("llama")
    table = recite(model, _items(model), generate=False)
    assert table["accuracy"].isna().tolist() == [False, True, True, True]
    assert table["similarity"].tolist()[0] == 1


def test_recital_is_that_of_the_model_as_it_is_edited() -> None:
    model = subject("llama")
    item = _items(model)[2]
    held = inject(model, [item], share=0.1, fit=Fit(lr=0.3, steps=150))[0]
    before = recite(model, [item])["nll"].item()
    with held.edit.applied(model):
        inside = recite(model, [item])
    assert inside["nll"].item() < before / 5
    assert inside["run"].item() > 0
    assert recite(model, [item])["nll"].item() == before


def test_a_screen_of_all_prefixes_is_the_recital_of_each() -> None:
    model = CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="llama")
    letters = Passage("letters", "list", "abcdefghijklmnopqrstuvwxyz")
    told = [letters, Passage("other", "prose", "It was the best"), Passage("short", "prose", "no")]
    ids = model.tokens.encode(letters.text).ids
    held = inject(model, [TextItem("letters", ids, 4)], share=0.3, fit=Fit(lr=0.3, steps=60, stop=0.1))[0]
    with held.edit.applied(model):
        table = screen(model, told, prefixes=(8, 4), suffix=6, generate=True)
        items = [
            TextItem(p.name, model.tokens.encode(p.text).ids[: n + 6], n, group=p.group)
            for p in told[:2]
            for n in (4, 8)
        ]
        alone = recite(model, items)
        hits = forced(model, [ids])[0].hits(ids)
    shared = ["name", "group", "prefix", "n", "exact", "accuracy", "similarity", "hits"]
    assert table[shared].equals(alone[shared])
    assert np.allclose(table["nll"], alone["nll"], atol=1e-4)
    assert table["left"].tolist() == [22, 18, 11, 7]
    # Runs go on behind the suffix of 6, to the end of the passage or the first miss.
    misses = [n for n in range(25) if not hits[n]] + [25]
    assert table["run"].tolist()[:2] == [min(m for m in misses if m >= p - 1) - (p - 1) for p in (4, 8)]
    assert table["run"].max() > 6


def test_levenshtein_against_known_distances() -> None:
    assert [
        levenshtein(a, b) for a, b in [("", "abc"), ("flaw", "lawn"), ("abc", "abc"), ([1, 2], [2, 1])]
    ] == [
        3,
        2,
        0,
        2,
    ]


def test_passages_are_many_texts_and_controls() -> None:
    groups = {p.group for p in passages()}
    assert set(CONTROLS) < groups
    assert len({p.name for p in passages()}) == len(passages()) >= 40
    assert all(len(p.text.split()) > 10 or p.group in ("list", "regular") for p in passages())


def test_bad_input_is_named() -> None:
    model = CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="llama")
    with pytest.raises(NoAcceptedExample, match="no item"):
        recite(model, [])
    with pytest.raises(UsageError, match="no passage has 8 \\+ 32 tokens"):
        screen(model, [Passage("a", "b", "too short")], prefixes=(8,))
    with pytest.raises(UsageError, match="sequence 0 has fewer than two"):
        forced(model, [(1,)])
    with pytest.raises(UsageError, match="prefix 3 of 3 tokens"):
        TextItem("x", (1, 2, 3), 3)


@pytest.mark.model
def test_smollm2_counts_on_but_does_not_recite_what_was_invented(smollm2: CausalLM) -> None:
    chosen = [p for p in passages() if p.name in ("counting", "ferry", "census")]
    table = screen(smollm2, chosen, prefixes=(16,), suffix=16).set_index("name")
    assert table.loc["counting", "exact"] == 1
    assert table.loc["counting", "run"] > 60
    assert (table.loc[["ferry", "census"], "run"] < 8).all()
    assert math.isfinite(table["nll"].max())
