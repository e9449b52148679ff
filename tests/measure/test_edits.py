"""Scores of edits: by hand on small numbers, on a model whose answers are known, and over rules and files."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import BrokenData, MissingResource, NoAcceptedExample, UsageError
from interp.intervene.edit import WeightEdit
from interp.intervene.facts import Prefixes, Rewrite, Search, common_text, rome
from interp.measure.edit_records import read_counterfact, relation_records
from interp.measure.edits import (
    EditRecord,
    Neighbour,
    drift,
    fluency,
    harmonic,
    ngram_entropy,
    score_edits,
    scoreboard,
)
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks.base import Example, FixedTask
from interp.tasks.facts import Facts
from interp.tasks.prose import unseen
from tests.intervene.facts.rewrites import moments
from tests.subjects import examples, subject
from tests.tiny import byte_tokenizer, tiny

NEW, TRUE, OTHER = (40, 7), (40, 9, 3), (41,)
"""Two answers of different lengths that part at their second token, and one that differs at once."""


def records() -> list[EditRecord]:
    ids = [e.ids for e in examples((12, 9, 15, 11, 8, 10), seed=4)]
    one = EditRecord(
        Rewrite(ids[0], (4, 7), NEW, TRUE),
        paraphrases=(ids[1], ids[2]),
        neighbours=(Neighbour(ids[3], OTHER), Neighbour(ids[4], TRUE)),
        name="one",
        relation="r",
    )
    return [one, EditRecord(Rewrite(ids[5], (2, 3), (8,), (9,)), paraphrases=(ids[0],), name="two")]


def pushed(s: CausalLM, layer: int, seed: int) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    a = 0.1 * torch.randn(s.d_mlp, 1, generator=generator)
    return WeightEdit(layer, "down", a, torch.randn(1, s.d_model, generator=generator))


def probability(s: CausalLM, ids, answer) -> list[float]:
    """Of each token of an answer, by a run of its own."""
    out = []
    for i, token in enumerate(answer):
        batch = s.batch([Example("t", tuple(ids) + tuple(answer[:i]), ())], forced=False)
        out.append(float(s.run(batch).logits[0, -1].softmax(-1)[token]))
    return out


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("rule", ["divergence", "mean"])
def test_probabilities_are_those_of_single_runs(family, rule):
    s = subject(family)
    edits = [pushed(s, 1, 0), pushed(s, 2, 1)]
    frame = score_edits(s, records(), edits, rule=rule)
    assert len(frame) == 2 * (5 + 2) and set(frame["alone"]) == {True}
    for number, record in enumerate(records()):
        for state, applied in (("before", ()), ("after", (edits[number],))):
            rows = frame[(frame["record"] == record.name) & (frame["state"] == state)]
            for row, (kind, ids, true) in zip(rows.itertuples(), record.prompts(), strict=True):
                with s.apply(*applied):
                    p_new, p_true = probability(s, ids, record.rewrite.target), probability(s, ids, true)
                if rule == "divergence":
                    at = 1 if (record.name, true) == ("one", TRUE) else 0
                    wanted = p_new[at], p_true[at]
                else:
                    wanted = tuple(math.exp(np.log(p).mean()) for p in (p_new, p_true))
                assert (row.p_new, row.p_true) == pytest.approx(wanted, rel=1e-3)
                gain = wanted[1] - wanted[0] if kind == "neighbour" else wanted[0] - wanted[1]
                assert row.magnitude == pytest.approx(gain, abs=1e-5) and row.success == float(gain > 0)
                assert row.kind == kind and math.isnan(row.top) == (rule == "mean")
    moved = frame[frame["state"] == "after"]["p_new"].to_numpy()
    assert np.abs(moved - frame[frame["state"] == "before"]["p_new"].to_numpy()).max() > 1e-4


def test_long_answers_do_not_win_by_their_length():
    """A second token that is certain raises the mean of a token, and says nothing about which answer is preferred."""
    s = subject("llama")
    ids = records()[0].rewrite.ids
    p = s.run(s.batch([Example("t", ids, ())], forced=False)).logits[0, -1].softmax(-1)
    order = p.argsort(descending=True).tolist()
    true, new = (order[3],), [order[4]]
    for _ in range(6):  # the model's own continuation, which it finds likely
        step = s.run(s.batch([Example("t", ids + tuple(new), ())], forced=False)).logits[0, -1]
        new.append(int(step.argmax()))
    one = EditRecord(Rewrite(ids, (1, 2), tuple(new), true), name="long")
    nothing = pushed(s, 1, 0)
    nothing = WeightEdit(1, "down", nothing.a, torch.zeros_like(nothing.b))
    found = {rule: score_edits(s, [one], [nothing], rule=rule) for rule in ("divergence", "mean")}
    assert found["divergence"]["success"].tolist() == [0.0, 0.0]
    assert found["mean"]["success"].tolist() == [1.0, 1.0]


def test_an_edit_that_holds_scores_full_and_is_greedy():
    s, ids = subject("llama"), examples((9,), seed=5)[0].ids
    rewrite = Rewrite(ids, (7, 9), (6,), (30,))
    search = Search(steps=60, decay=0.0, clamp=40.0)
    edit = rome(s, rewrite, 1, moments("llama"), prefixes=Prefixes(), search=search)
    board = scoreboard(score_edits(s, [EditRecord(rewrite)], [edit])).set_index(["state", "measure"])["value"]
    assert board["after", "ES"] == board["after", "ET"] == 1.0 and board["before", "ET"] == 0.0
    assert board["after", "EM"] > 0.5 and ("after", "S") not in board


def test_the_scoreboard_averages_prompts_within_records_first():
    rows = []
    for record, kind, success in [
        ("a", "efficacy", [1]),
        ("b", "efficacy", [0]),
        ("a", "paraphrase", [1, 1, 1, 0]),
        ("b", "paraphrase", [0]),
        ("a", "neighbour", [1, 1]),
        ("b", "neighbour", [1, 0]),
    ]:
        for s in success:
            about = {"record": record, "kind": kind, "state": "after", "success": float(s), "top": 0.0}
            rows.append({**about, "magnitude": 0.5 * s - 0.1})
    board = scoreboard(pd.DataFrame(rows)).set_index("measure")
    assert board.loc[["ES", "PS", "NS"], "value"].tolist() == [0.5, 0.375, 0.75]
    assert board.loc["PM", "value"] == pytest.approx(0.5 * 0.375 - 0.1)
    assert board.loc["S", "value"] == pytest.approx(3 / (1 / 0.5 + 1 / 0.375 + 1 / 0.75))
    assert board.loc["NS", ["ci_lo", "ci_hi", "n"]].tolist() == [0.5, 1.0, 2]
    assert harmonic([1.0, 0.0, 1.0]) == 0.0


def test_entropy_of_ngrams_by_hand():
    ids = [1, 2, 1, 2, 3]  # 12 21 12 23; 121 212 123
    two = -(0.5 * math.log2(0.5) + 2 * 0.25 * math.log2(0.25))
    assert ngram_entropy(ids) == pytest.approx((2 / 3 * two + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy([7] * 30) == 0.0


def test_text_after_an_edit_is_that_of_the_edited_model(rng_untouched):
    from interp.intervene.facts.requests import sampled

    s, edit = subject("qwen2"), pushed(subject("qwen2"), 0, 3)
    frame = fluency(s, records()[:1], edit, tokens=12, seed=2)
    assert frame["state"].tolist() == ["before", "after"]
    essence = records()[0].rewrite.essence
    with edit.applied(s):
        (wanted,) = sampled(s, [essence], 12, seed=2)
    assert tuple(frame["ids"][1]) == wanted != tuple(frame["ids"][0])
    assert frame["entropy"][1] == pytest.approx(ngram_entropy(wanted))


class _Text:
    """Random text that stands for prose."""

    def examples(self, source):
        return [Example("t", e.ids[:-8], e.ids[-8:], cluster=e.cluster) for e in examples()]


def test_drift_is_the_ratio_of_perplexities():
    s = subject("gpt2")
    edit = pushed(s, 1, 0)
    frame = drift(s, {"push": edit}, _Text()).iloc[0]

    def nll() -> float:
        each = [-np.log(probability(s, e.ids, e.answer_ids)).mean() for e in _Text().examples(s)]
        return float(np.mean(each))

    before = nll()
    with edit.applied(s):
        after = nll()
    assert frame["nll_before"] == pytest.approx(before, abs=1e-4)
    assert (
        frame["perplexity"] == pytest.approx(math.exp(after - before), rel=1e-3)
        and abs(after - before) > 1e-3
    )


def test_drift_is_measured_beside_the_text_of_the_moments():
    s = bytes_model()
    edit = {"push": pushed(s, 1, 0)}
    seen = common_text().examples(s)
    apart = drift(s, edit, FixedTask(unseen(s, seen))).iloc[0]
    assert drift(s, edit).iloc[0]["nll_before"] == pytest.approx(apart["nll_before"], abs=1e-6)
    assert drift(s, edit, FixedTask(seen[:16])).iloc[0]["nll_before"] != pytest.approx(
        apart["nll_before"], abs=1e-6
    )


# -- records ---------------------------------------------------------------------------------------------------------


def bytes_model() -> CausalLM:
    return CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="bytes")


COUNTERFACT = {
    "case_id": 17,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1"},
        "target_true": {"str": "French", "id": "Q2"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
    "neighborhood_prompts": ["Leon Blum is a native speaker of", "The native language of Montesquieu is"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}


def test_files_shaped_like_counterfact(tmp_path):
    s = bytes_model()
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([COUNTERFACT] * 3))
    found = read_counterfact(s, path, n=2)
    assert len(found) == 2
    text, one = s.tokens.decode, found[0]
    assert text(one.rewrite.ids) == "The mother tongue of Danielle Darrieux is"
    assert text(one.rewrite.ids[slice(*one.rewrite.span)]) == " Danielle Darrieux"
    assert (text(one.rewrite.target), text(one.rewrite.true)) == (" English", " French")
    assert [text(p) for p in one.paraphrases] == COUNTERFACT["paraphrase_prompts"]
    assert [text(x.ids) for x in one.neighbours] == COUNTERFACT["neighborhood_prompts"]
    assert {x.true for x in one.neighbours} == {one.rewrite.true}
    assert [text(p) for p in one.openings] == COUNTERFACT["generation_prompts"]
    assert (one.name, one.relation) == ("17", "P103")


def test_bad_files_are_told_by_their_record(tmp_path):
    s = bytes_model()
    alike = json.loads(json.dumps(COUNTERFACT))
    alike["requested_rewrite"]["target_new"]["str"] = "French Creole"
    with pytest.raises(BrokenData, match=r"record 1 cannot be asked: .*neither begin the other; skip=True"):
        read_counterfact(s, [COUNTERFACT, alike])
    assert len(read_counterfact(s, [alike, COUNTERFACT], skip=True)) == 1
    with pytest.raises(BrokenData, match="record 0 is not shaped like CounterFact: no 'requested_rewrite'"):
        read_counterfact(s, [{"prompt": "x"}])
    with pytest.raises(BrokenData, match="come as a list"):
        read_counterfact(s, COUNTERFACT)
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(BrokenData, match="is no JSON file"):
        read_counterfact(s, tmp_path / "no.json")
    with pytest.raises(MissingResource, match="cannot be read"):
        read_counterfact(s, tmp_path / "none.json")


def test_records_of_our_tables_have_paraphrases_and_neighbours_with_their_own_answers():
    s = bytes_model()
    made = [
        e for e in Facts(relations=["landmark"], templates=[1]).examples(s) if e.meta["object"] == "France"
    ]
    found = relation_records(s, made[:2], neighbours=6)
    text = s.tokens.decode
    for example, one in zip(made, found, strict=False):
        assert one.rewrite.ids == example.ids and one.rewrite.true == example.answer_ids
        assert one.rewrite.target == example.foil_ids != example.answer_ids
        assert len(one.paraphrases) == 3 and all(example.meta["subject"] in text(p) for p in one.paraphrases)
        assert len({one.rewrite.ids, *one.paraphrases}) == 4
        assert len(one.neighbours) == 6
        # Other landmarks in France come first, then such of other countries.
        objects = [text(x.true) for x in one.neighbours]
        same = min(len(made) - 1, 6)
        assert set(objects[:same]) == {" France"} and " France" not in objects[same:]
        for x in one.neighbours:
            assert text(x.ids).startswith("The famous landmark ") and example.meta["subject"] not in text(
                x.ids
            )
    again = relation_records(s, made[:1], neighbours=6)
    assert again[0].neighbours == found[0].neighbours
    assert relation_records(s, made[:1], neighbours=6, seed=1)[0].neighbours != found[0].neighbours
    few = relation_records(s, made[:1], neighbours=6, known=made[:3])
    assert {x.ids for x in few[0].neighbours} == {e.ids for e in made[1:3]}


def test_neighbours_of_unique_objects_are_held_to_their_own():
    s = bytes_model()
    made = Facts(relations=["capital"], templates=[1], n=3).examples(s)
    one = relation_records(s, made)[0]
    assert len({x.true for x in one.neighbours}) == 5
    assert not {one.rewrite.true, one.rewrite.target} & {x.true for x in one.neighbours}
    with pytest.raises(UsageError, match="shots=0"):
        relation_records(s, Facts(relations=["capital"], shots=1, n=1).examples(s))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda s: EditRecord(Rewrite((1, 2), (0, 1), (5, 6), (5,))), UsageError, "neither begin the other"),
        (lambda s: EditRecord(Rewrite((1, 2), (0, 1), (5,))), UsageError, "must be there"),
        (lambda s: score_edits(s, records(), [pushed(s, 1, 0)]), UsageError, "1 edits for 2 records"),
        (lambda s: score_edits(s, records(), pushed(s, 1, 0), rule="sum"), UsageError, "divergence or mean"),
        (lambda s: score_edits(s, [], []), NoAcceptedExample, "at least one record"),
    ],
)
def test_bad_requests_say_what_to_write(make, error, told):
    with pytest.raises(error, match=told):
        make(subject("llama"))


def test_one_edit_for_all_records():
    s = subject("llama")
    edit = pushed(s, 1, 0)
    together = score_edits(s, records(), edit)
    assert set(together["alone"]) == {False}
    alone = score_edits(s, records(), [edit, edit])
    assert together["p_new"].tolist() == pytest.approx(alone["p_new"].tolist(), abs=1e-6)
