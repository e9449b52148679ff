"""Questions of the tasks that ship are put in other words, in each of their forms; what they name is kept."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.tasks import task
from interp.tasks.base import check_example
from interp.tasks.pairs import data
from interp.tasks.wrap import reworded
from interp.tasks.wrap.reword import known, wordings

FORMS: list[tuple[str, dict[str, Any]]] = [
    *[("ruler_niah", {"setting": s, "length": 500}) for s in ("single_2", "multivalue", "multiquery")],
    *[("kinship", {"ask": a}) for a in ("eldest", "ancestor", "descendant")],
    *[("biographies", {"form": f, "n": 24}) for f in ("standard", "unstated")],
    ("order", {"items": 4}),
    *[("order", {"form": "words", "answer": a}) for a in ("label", "word")],
    *[
        ("stories", {"facts": None, "question": q})
        for q in ("where_person", "where_object", "where_was_object", "yes_no", "count", "list", "give")
    ],
    ("updates", {"n": 16}),
    *[("consolidation", {"hops": h, "n": 16}) for h in (1, 2)],
    *[("serial_recall", {"probe": p, "n": 16}) for p in ("position", "after")],
    ("complex_span", {"n": 16}),
    ("updating", {"n": 16}),
    ("change_detection", {"n": 16}),
]
"""Tasks in the forms that ask questions of their own; those with so many examples have so many wordings in turn."""


@pytest.mark.parametrize(("name", "params"), FORMS, ids=lambda p: p if isinstance(p, str) else "")
def test_every_form_of_a_question_can_be_reworded(name: str, params: dict[str, Any]) -> None:
    tokens = tests.tokenizers.tokens("smollm")
    base = task(name, **{"n": 4, **params})
    for new, old in zip(reworded(base).examples(tokens), base.examples(tokens), strict=True):
        check_example(new, tokens, copies=base.copies)
        assert new.meta["reworded"] not in (old.text or "") and new.corrupt.keys() == old.corrupt.keys()
        for role in ("query", "label", "order_mark"):
            named, before = (
                [tokens.decode(e.ids[s.start : s.end]).strip() for s in e.spans_of(role)] for e in (new, old)
            )
            assert sorted(named) == sorted(before)


def test_a_rewording_names_what_the_question_names_and_no_question_is_taken_for_another() -> None:
    rng = np.random.default_rng(0)
    words = data("words")["goods"]
    for wording in wordings():
        slots = re.findall(r"\{\w+\}", wording.question)
        assert wording.others and slots and len(set(slots)) == len(slots)
        for other in wording.others:
            assert sorted(re.findall(r"\{\w+\}", other)) == sorted(slots) and other != wording.question
            assert other.endswith("?") and not re.search(r"\{\w+\}[a-z]|[a-z]\{", other)
        drawn = [str(w) for w in rng.choice(words, len(slots), replace=False)]
        text = wording.question
        for slot, word in zip(slots, drawn, strict=True):
            text = text.replace(slot, word)
        found = known(f" {text}")
        assert found is not None and found[0] == wording, text
