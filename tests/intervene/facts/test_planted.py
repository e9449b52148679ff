"""On a key-value memory built by hand an edited fact holds, and every other fact stays."""

from __future__ import annotations

import pytest
import torch

from interp.intervene.facts import FactEdit, Moments, Search, memit, rome, second_moments
from tests.intervene.facts.memory import CONTEXTS, LAYERS, OBJECTS, RELATIONS, SUBJECTS, Memory, memory, thing

SEARCH = Search(steps=40, step=0.1, decay=0.01)
"""Steps are short: long ones overshoot, and then the same subject's other facts change too."""


def moments(m: Memory) -> Moments:
    return second_moments(m.model, m.text(), cache=False)


def other(m: Memory, about: int, relation: int, by: int = 1) -> int:
    """An object that is not the fact's."""
    return thing((m.facts[about, relation] - thing(0) + by) % OBJECTS)


def moved(m: Memory, edit: FactEdit, about: list[int]) -> float:
    """How far the logits of questions about subjects other than these move, at most."""
    before = m.answers()
    with edit.applied(m.model):
        after = m.answers()
    return max(float((after[q] - x).abs().max()) for q, x in before.items() if q[0] not in about)


@pytest.mark.parametrize("seed", range(4))
def test_the_memory_knows_its_facts_and_loses_them_with_its_mlp_only(seed):
    from interp.intervene.ablate import ablate
    from interp.models.sites import MLP

    m = memory(seed)
    assert len(m.facts) == SUBJECTS * RELATIONS and m.says() == m.facts
    for layer in range(LAYERS):
        with m.model.apply(ablate([MLP(layer)])):
            right = sum(m.says()[q] == m.facts[q] for q in m.facts) / len(m.facts)
        assert right < 0.4 if layer == m.layer else right == 1.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shared", [0, 20])
def test_an_edited_fact_holds_and_all_others_stay(seed, shared):
    m = memory(seed, shared)
    assert m.says() == m.facts
    new = other(m, 3, 1)
    edit = rome(m.model, m.rewrite(3, 1, new), m.layer, moments(m), prefixes=CONTEXTS, search=SEARCH)
    bits = {k: v.clone() for k, v in m.model.hf.state_dict().items()}
    with edit.applied(m.model):
        assert m.says() == {**m.facts, (3, 1): new}
        assert float(m.answers()[3, 1].softmax(-1)[new]) > 0.9
    assert all(torch.equal(v, bits[k]) for k, v in m.model.hf.state_dict().items())
    if not shared:  # then keys of other subjects are orthogonal under C
        assert moved(m, edit, [3]) < 1e-3


@pytest.mark.parametrize("seed", range(2))
def test_moments_keep_what_keys_have_in_common_out_of_the_edit(seed):
    m = memory(seed, shared=20)
    ask = m.rewrite(5, 0, other(m, 5, 0))
    with_c, without = (
        rome(m.model, ask, m.layer, c, prefixes=CONTEXTS, search=SEARCH) for c in (moments(m), None)
    )
    assert 5 * moved(m, with_c, [5]) < moved(m, without, [5])


def written(m: Memory, weight: float) -> tuple[dict[tuple[int, int], int], FactEdit]:
    """Five facts written by MEMIT into the layer that holds them."""
    wanted = {(s, s % 2): other(m, s, s % 2, 1 + s % 3) for s in (0, 2, 3, 7, 10)}
    asked = [m.rewrite(*q, new) for q, new in wanted.items()]
    edit = memit(m.model, asked, [m.layer], moments(m), weight=weight, prefixes=CONTEXTS, search=SEARCH)
    return wanted, edit


@pytest.mark.parametrize("seed", range(2))
def test_many_facts_hold_at_once_and_all_others_stay(seed):
    m = memory(seed, shared=20)
    wanted, edit = written(m, 1e-4)
    assert edit.edits[0].rank == 5
    with edit.applied(m.model):
        assert m.says() == {**m.facts, **wanted}


def test_text_wins_over_facts_where_it_weighs_more():
    m = memory(2, shared=20)
    with written(m, 1e4)[1].applied(m.model):
        assert m.says() == m.facts
