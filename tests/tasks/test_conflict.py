"""Knowledge conflicts: statements of either side, and what is told of the side a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tests.tokenizers
from interp.errors import UsageError
from interp.measure.conflict import memorisation, sides
from interp.measure.stats import proportion_ci
from interp.models.subject import CausalLM
from interp.tasks import task
from interp.tasks.base import Example, Ids, check_example
from interp.tasks.facts import relation, wording_pieces

TOKENS = tests.tokenizers.tokens("smollm")


def ask(**params: Any) -> list[Example]:
    return task("conflict", **params).examples(TOKENS)


def text_of(example: Example, role: str, item: int) -> str:
    assert example.text is not None and example.offsets is not None
    (span,) = example.spans_of(role, item)
    return example.text[example.offsets[span.start][0] : example.offsets[span.end - 1][1]].strip()


@pytest.mark.parametrize(("counter", "memory", "irrelevant"), [(1, 0, 0), (1, 1, 0), (2, 1, 0), (1, 2, 2)])
def test_statements(counter: int, memory: int, irrelevant: int) -> None:
    firsts = []
    for e in ask(counter=counter, memory=memory, irrelevant=irrelevant, n=24):
        table = relation(e.meta["relation"])
        about, true, false = (e.meta[k] for k in ("subject", "memory_answer", "context_answer"))
        assert table.facts[about] == true and false in table.objects and false not in table.answers(about)
        assert TOKENS.decode(e.answer_ids).strip() == true and TOKENS.decode(e.foil_ids).strip() == false
        lines = str(e.text).split("\n")
        assert len(lines) == counter + memory + irrelevant + 1
        wordings = {
            "".join(p.text for p in wording_pieces(w, about)): i for i, w in enumerate(table.wordings)
        }
        assert wordings[lines[-1]] == e.meta["template"]
        used = {"counter": set(), "memory": set()}  # type: ignore[var-annotated]
        for i in range(counter):
            said = text_of(e, "counter_evidence", i)
            assert said.endswith(f" {false}.") and text_of(e, "counter_value", i) == false
            used["counter"].add(wordings[said[: -len(f" {false}.")]])
        for i in range(memory):
            used["memory"].add(wordings[text_of(e, "evidence", i)[: -len(f" {true}.")]])
        assert len(used["counter"]) == counter and len(used["memory"]) == memory
        # Sides share their wordings, and none is that of the question.
        assert used["counter"] <= used["memory"] or used["memory"] <= used["counter"]
        assert e.meta["template"] not in used["counter"] | used["memory"]
        for line in lines[:irrelevant]:
            assert about not in line and true not in line and false not in line
        firsts.append(e.meta["first"])
        if memory:
            starts = {r: e.spans_of(r)[0].start for r in ("evidence", "counter_evidence")}
            assert (starts["evidence"] < starts["counter_evidence"]) == (e.meta["first"] == "memory")
    assert firsts.count("memory") == (12 if memory else 0)


def test_order() -> None:
    for order in ("memory_first", "counter_first"):
        made = ask(counter=1, memory=1, order=order, n=6)
        assert {e.meta["first"] for e in made} == {order.removesuffix("_first")}


def test_the_twin_contradicts_nothing() -> None:
    twins = 0
    for e in ask(n=40, counter=2, memory=1):
        check_example(e, TOKENS)
        twin = e.corrupt.get("needle_drop")
        if twin is None:
            continue
        twins += 1
        assert twin.answer_ids == e.answer_ids and twin.meta["counter"] == 0
        changed = [i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b]
        inside = {i for s in e.spans_of("counter_evidence") for i in range(s.start, s.end)}
        assert changed and set(changed) <= inside
        for i in range(2):
            assert e.meta["subject"] not in text_of(twin, "counter_evidence", i)
            assert text_of(twin, "counter_value", i) == e.meta["context_answer"]
    assert twins > 30


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"counter": 0}, "counter is 0"),
        ({"order": "first"}, "order is 'first'; take of memory_first"),
        ({"counter": 8}, "8 statements of one sort, and relation capital has wordings and answers for 7"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("conflict", relations=["capital"], **params)


def test_sides_and_their_ratio() -> None:
    examples = ask(n=30, counter=1, memory=1)
    wanted = ["memory"] * 12 + ["context"] * 6 + ["other"] * 12
    said: dict[Ids, tuple[int, int, int]] = {}
    for e, side in zip(examples, wanted, strict=True):
        at = e.meta["score_at"]
        ours, theirs = e.answer_ids[at], e.foil_ids[at]
        neither = next(i for i in range(300, 400) if i not in (ours, theirs))
        said[e.ids + e.answer_ids[:at]] = (
            {"memory": ours, "context": theirs, "other": neither}[side],
            ours,
            theirs,
        )

    def speak(prompts: Sequence[Ids]) -> torch.Tensor:
        rows = torch.zeros(len(prompts), TOKENS.n_vocab)
        for row, ids in zip(rows, prompts, strict=True):
            best, ours, theirs = said[ids]
            row[ours], row[theirs] = 1.0, 3.0
            row[best] = 5.0
        return rows

    subject: Any = SimpleNamespace(tokens=TOKENS, name="planted")
    frame = sides(subject, examples, speak=speak)
    assert list(frame["side"]) == wanted
    assert frame["margin"].tolist() == pytest.approx([2.0] * 12 + [-4.0] * 6 + [-2.0] * 12)
    (row,) = memorisation(frame, by=()).to_dict("records")
    assert (row["n"], row["f_memory"], row["f_context"], row["f_other"]) == (30, 0.4, 0.2, 0.4)
    decided = frame[frame["side"] != "other"]
    low, high = proportion_ci((decided["side"] == "memory").to_numpy(float), decided["cluster"].to_numpy())
    assert row["ratio"] == pytest.approx(2 / 3) and (row["ci_lo"], row["ci_hi"]) == (low, high)
    assert 0.3 < low < 2 / 3 < high < 0.9
    table = memorisation(frame)
    assert table["n"].tolist() == [15, 15] and set(table["first"]) == {"memory", "counter"}
    undecided = memorisation(frame[frame["side"] == "other"], by=())
    assert undecided["ratio"].isna().all() and undecided["n_clusters"].item() == 0
    with pytest.raises(UsageError, match="no column 'domain'"):
        memorisation(frame, by=["domain"])


def test_the_default_model_believes_its_context(smollm2: CausalLM) -> None:
    made = task("conflict", relations=["capital", "continent"], n=12)
    told = sides(smollm2, made)
    without = sides(smollm2, [e.corrupt["needle_drop"] for e in made.examples(smollm2) if e.corrupt])
    assert told["margin"].mean() < without["margin"].mean() - 1
