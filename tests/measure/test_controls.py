"""Control sets: never chosen heads, distinct, and nearer in what they are matched on than random ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.reference import Reference
from interp.measure.controls import matched, matched_heads
from interp.measure.heads import head_statistics
from interp.models.engines.base import Record, Rows
from interp.models.sites import Head, components
from tests.planted.retrieval import plant, planted_task
from tests.subjects import examples, subject


@pytest.fixture(scope="module")
def planted():
    """Four layers of heads whose norms and entropies differ widely, and data."""
    from interp.models.subject import CausalLM

    made = plant("gpt2", seed=3)
    return CausalLM(made.module, None, name="planted"), planted_task(made, 6, 0, 60), made


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_norm_and_entropy_are_those_of_plain_recordings(family):
    s, data = subject(family), examples()
    found = head_statistics(s, Reference(data))
    norms, entropies = [], []
    for e in data:
        taps = {f"head_out[{i}]": Record() for i in range(s.n_layers)}
        trace = s.run([e], taps, rows=Rows(torch.tensor([list(e.answer_rows)])))
        norms.append(torch.stack([trace[f"head_out[{i}]"][0].norm(dim=-1) for i in range(s.n_layers)], 1))
        rows = torch.stack([trace.rows[i][0] for i in range(s.n_layers)])
        entropies.append(-(rows * rows.clamp(min=1e-30).log()).sum(-1))
    np.testing.assert_allclose(found["norm"], torch.cat(norms).mean(0).flatten(), rtol=1e-4)
    np.testing.assert_allclose(found["entropy"], torch.cat(entropies, -1).mean(-1).flatten(), atol=1e-5)
    assert found["component"].tolist() == [repr(h) for h in s.heads()]


@pytest.mark.parametrize("by", ["norm", "entropy"])
def test_matched_sets_are_nearer_in_their_statistic_than_random_ones(planted, by):
    s, task, made = planted
    value = head_statistics(s, Reference(task)).set_index("component")[by]
    chosen = [Head(*h) for h in sorted(made.retrieval)][:2]
    found = matched(s, chosen, 12, by, data=task, seed=1)
    assert len(found) == len(set(found)) == 12 and not any(set(d) & set(chosen) for d in found)

    def gap(drawn):
        """Smallest mean distance over all pairings."""
        a, b = (np.sort([value[repr(h)] for h in part]) for part in (chosen, drawn))
        return np.abs(a - b).mean()

    rng = np.random.default_rng(0)
    free = [h for h in s.heads() if h not in chosen]
    random = [gap([free[i] for i in rng.choice(len(free), 2, replace=False)]) for _ in range(200)]
    assert np.mean([gap(d) for d in found]) < 0.6 * np.mean(random)
    # The table says what was matched, and the gap of a set is what the heads' values say.
    table = found.table
    assert (table["value"] == value.loc[table["component"]].to_numpy()).all()
    assert (table["wanted"] == value.loc[table["chosen"]].to_numpy()).all()
    assert found.gaps == pytest.approx(
        (table["value"] - table["wanted"]).abs().groupby(table["draw"]).mean().tolist()
    )
    for draw, rows in table.groupby("draw"):
        assert set(rows["chosen"]) == set(map(repr, chosen))
        assert sorted(rows["component"]) == sorted(map(repr, found[draw]))
    assert found.sets == matched(s, chosen, 12, by, data=task, seed=1).sets
    assert found.sets != matched(s, chosen, 12, by, data=task, seed=2).sets


def test_one_head_has_its_nearest_heads_as_controls(planted):
    s, task, _ = planted
    value = head_statistics(s, Reference(task)).set_index("component")["norm"]
    one = Head(1, 2)
    for n in (3, 12):
        found = matched(s, [one], n, "norm", data=task, avoid=components("L0H0 L0H1"))
        near = sorted(
            (h for h in s.heads() if h != one and h not in components("L0H0 L0H1")),
            key=lambda h: abs(value[repr(h)] - value[repr(one)]),
        )
        assert len(found) == n and {h for d in found for h in d} <= set(near[: max(8, n)])
    with pytest.raises(UsageError, match="too few are left"):
        matched(s, s.heads()[: len(s.heads()) // 2 + 1], 1, "norm", data=task)


def test_statistics_are_measured_once_a_reference(planted, monkeypatch):
    s, task, _ = planted
    runs = []
    run = type(s.engine).run
    monkeypatch.setattr(type(s.engine), "run", lambda *a, **k: runs.append(1) or run(*a, **k))
    data = Reference(task)
    for by in ("norm", "entropy", "norm"):
        matched(s, components("L1H0"), 2, by, data=data)
    assert len(runs) == 1


def test_layer_is_what_it_was_and_its_table_has_the_distance():
    s = subject("llama")
    chosen = [Head(0, h) for h in range(3)]
    found = matched(s, chosen, 5, seed=0)
    assert list(found) == matched_heads(s, chosen, 5, seed=0)
    # One head of layer 0 is free; the others come from layer 1.
    assert found.gaps == pytest.approx([2 / 3] * 5) and set(found.table["value"]) == {0.0, 1.0}


def test_bottom_is_the_last_of_a_ranking_and_ties_go_by_the_seed():
    s = subject("llama")
    order = s.heads()
    (last,) = matched(s, order[:3], 20, "bottom", ranking=order, avoid=order[-1:])
    assert last == tuple(sorted(order[-4:-1]))
    scores = pd.DataFrame({"component": [repr(h) for h in order], "score": [5.0, 4.0, *[0.0] * 10]})
    sets = {matched(s, order[:2], 1, "bottom", ranking=scores, seed=i)[0] for i in range(8)}
    assert len(sets) > 1 and not any(set(d) & set(order[:2]) for d in sets)
    scores.loc[7, "score"] = -1.0
    found = matched(s, order[:2], 1, "bottom", ranking=scores, seed=1)
    assert order[7] in found[0] and sorted(found.table["value"]) == [-1.0, 0.0]
    assert found.gaps == [pytest.approx((5 + 4 + 1) / 2)]


def test_bottom_of_several_scores_is_of_the_first():
    """A locator's `scores_` holds every score; a head that stands in it twice is one head."""
    s = subject("llama")
    order = s.heads()
    names = [repr(h) for h in order]
    both = pd.DataFrame({"component": 2 * names, "method": ["copy"] * 12 + ["r2"] * 12,
                         "score": [*range(12, 0, -1), *range(12)]})  # fmt: skip
    (last,) = matched(s, order[:3], 1, "bottom", ranking=both)
    assert last == tuple(order[-3:])


def test_given_takes_the_first_of_each_list_that_are_not_chosen():
    s = subject("llama")
    one = matched(s, components("L0H1 L0H2"), 20, "given", given=["L0H1", "L2H3", "L1H1", "L0H0"])
    assert list(one) == [(Head(1, 1), Head(2, 3))] and np.isnan(one.gaps).all()
    two = matched(s, ["L0H1"], 20, "given", given=[["L2H0"], components("L0H1 L1H0"), ["L2H0"]])
    assert list(two) == [(Head(2, 0),), (Head(1, 0),)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "depth"}, "layer, size, norm, entropy, bottom, given"),
        ({"by": "norm"}, "need data"),
        ({"by": "bottom"}, "need a ranking"),
        ({"by": "bottom", "ranking": ["L0H0"]}, "the ranking has 0 others"),
        ({"by": "given"}, "need heads"),
        ({"by": "given", "given": ["L0H0"]}, "0 heads that are not chosen, and 1 are cut"),
    ],
)
def test_bad_requests_say_what_to_write(options, told):
    with pytest.raises(UsageError, match=told):
        matched(subject("llama"), ["L0H0"], 3, **options)
    with pytest.raises(UsageError, match="controls=0"):
        matched(subject("llama"), ["M1"], 3)


def test_sets_of_size_come_from_any_layer():
    s = subject("llama")  # 3 layers of 4 heads
    chosen = components("L1H0 L1H2 L1H3")
    found = matched(s, chosen, 40, "size", seed=3)
    assert len(set(found)) == 40 and all(len(d) == 3 and not set(d) & set(chosen) for d in found)
    drawn = [h.layer for d in found for h in d]
    # Of nine free heads four each lie in layers 0 and 2, one in layer 1.
    assert [drawn.count(i) / 120 for i in range(3)] == pytest.approx([4 / 9, 1 / 9, 4 / 9], abs=0.09)
    assert (
        found[:5] == matched(s, chosen, 40, "size", seed=3)[:5] != matched(s, chosen, 40, "size", seed=4)[:5]
    )
    assert found.table["gap"].tolist() == (found.table["value"] - 1).abs().tolist()
    # The only set that is left.
    rest = [h for h in s.heads() if h not in {*chosen, Head(0, 0), Head(2, 1), Head(2, 2)}]
    few = matched(s, ["L0H0", "L2H1"], 9, "size", avoid=[*rest, *chosen[:1], *chosen[1:2]])
    assert sorted(few) == [tuple(components("L1H3 L2H2"))]
    with pytest.raises(UsageError, match="too few are left"):
        matched(s, ["L0H0", "L2H1"], 2, "size", avoid=[*rest, *chosen])


def test_a_scope_decides_where_norms_are_measured():
    s, data = subject("llama"), examples()
    last = head_statistics(s, Reference(data), "answer")
    norms = []
    for e in data:
        taps = {f"head_out[{i}]": Record() for i in range(s.n_layers)}
        trace = s.run([e], taps)
        every = torch.stack([trace[f"head_out[{i}]"][0].norm(dim=-1) for i in range(s.n_layers)], 1)
        norms.append(every[list(e.answer_rows)])
    np.testing.assert_allclose(last["norm"], torch.cat(norms).mean(0).flatten(), rtol=1e-4)
    reference = Reference(data)
    whole = head_statistics(s, reference)
    assert not np.allclose(whole["norm"], last["norm"], rtol=1e-3)
    # Both are kept with the reference, apart.
    pd.testing.assert_frame_equal(head_statistics(s, reference, "answer"), last)
    pd.testing.assert_frame_equal(head_statistics(s, reference), whole)


def test_a_head_loud_at_the_last_token_gets_loud_controls(monkeypatch):
    s = subject("llama")
    heads = s.heads()
    loud = set(heads[:12:2])

    def made(subject, data, scope="all"):
        norm = [
            9.0 - 0.1 * i if h in loud and scope == "answer" else 1.0 + 0.01 * i for i, h in enumerate(heads)
        ]
        return pd.DataFrame(
            {"layer": [h.layer for h in heads], "head": [h.head for h in heads], "norm": norm}
        )

    monkeypatch.setattr("interp.measure.controls.head_statistics", made)
    monkeypatch.setattr("interp.measure.controls.NEAR", 4)
    found = matched(s, [heads[0]], 4, "norm", data=examples(), scope="answer")
    assert len(found) == 4 and {h for drawn in found for h in drawn} <= loud - {heads[0]}
    plain = matched(s, [heads[0]], 4, "norm", data=examples())
    assert not {h for drawn in plain for h in drawn} <= loud
