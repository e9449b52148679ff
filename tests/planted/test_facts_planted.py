"""Planted fact MLPs: the locator finds layer and neurons, cuts erase those facts and no others, decoys do not pass."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from interp.intervene.ablate import Ablate, ablate
from interp.intervene.edit import WeightEdit
from interp.intervene.facts import second_moments
from interp.intervene.facts.rome import RIDGE, rank_one
from interp.intervene.trace import How, trace_maps
from interp.locate.facts.fact_mlps import FactMLPs
from interp.locate.facts.flow import averages, knockout_map
from interp.measure.mlp_controls import matched_neurons, matched_windows
from interp.measure.outcomes import evaluate
from interp.models.engines.base import Record
from interp.models.sites import MLP, Site
from interp.tasks.base import Example
from tests.planted.facts import Planted, planted

FAMILY = [(0, "gpt2"), (1, "llama"), (2, "gpt2")]


@cache
def asked(model: Planted) -> tuple[list[Example], list[Example]]:
    """A prompt of each fact, and prompts whose answer is copied."""
    rng = np.random.default_rng(0)
    return model.prompts(rng), model.copies(rng, 16)


def fitted(seed: int, kind: str, corruption: str = "subject_swap", blur: float = 0.0) -> FactMLPs:
    """A fitted locator; shared, so leave it as it was."""
    return _fitted(seed, kind, corruption, blur)


@cache
def _fitted(seed: int, kind: str, corruption: str, blur: float) -> FactMLPs:
    model = planted(seed, kind, blur)
    facts, copies = asked(model)
    return FactMLPs(corruption=corruption, samples=4, exact=4, check=2).fit(
        model.subject, facts, reference=copies
    )


def right(model: Planted, examples: list[Example], cut: Ablate | None = None) -> np.ndarray:
    """Whether the answer has more than half of the probability: a model without the fact may still guess it."""
    return np.exp(evaluate(model.subject, examples, {"cut": cut}).values["cut"]["logprob"]) > 0.5


@pytest.mark.parametrize(("seed", "kind"), [*FAMILY, (7, "gpt2"), (8, "llama")])
def test_models_know_their_facts_and_copy(seed: int, kind: str) -> None:
    model = planted(seed, kind)
    facts, copies = asked(model)
    assert right(model, facts).all() and right(model, copies).all()
    assert len({f.b for f in model.facts}) < len(
        {(f.a, f.b) for f in model.facts}
    )  # no token tells a subject
    twins = [e.corrupt["subject_swap"] for e in facts]
    assert right(model, twins).all()
    assert all(
        len(t.ids) == len(e.ids) and t.answer_ids != e.answer_ids for t, e in zip(twins, facts, strict=True)
    )


@pytest.mark.parametrize(
    ("seed", "kind", "corruption"),
    [*((*model, "subject_swap") for model in FAMILY), (3, "llama", "noise")],
)
def test_layer_and_neurons_are_found_exactly(seed: int, kind: str, corruption: str) -> None:
    model, found = planted(seed, kind), fitted(seed, kind, corruption)
    assert found.top(1) == (MLP(model.layers["facts"]),)
    best = found.layers_.set_index("layer").loc[model.layers["facts"]]
    assert best.aie_lo > 0.5 and best.share > 0.9
    truth = {n for fact in model.facts for n in fact.neurons}
    assert set(found.top(len(truth), "neurons")) == truth
    for i, fact in enumerate(model.facts):
        assert set(found.holding([i], k=len(fact.neurons))) == set(fact.neurons)
    assert found.agreement_["spearman"] > 0.9 and found.agreement_["missed"] == 0


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_layer_and_token_are_found_exactly_in_whole_maps(seed: int, kind: str) -> None:
    """Every MLP at every token: the fact is held at one place, and said at another one."""
    model = planted(seed, kind)
    facts = asked(model)[0][::3]
    maps = trace_maps(model.subject, facts, How(kinds=("mlp_out",), corruption=("subject_swap",)))
    assert len(maps) == sum(len(e.ids) for e in facts) * model.subject.n_layers
    maps["share"] = (maps.value - maps.low) / (maps.high - maps.low)
    share = maps.set_index(["layer", "place", "example"])["share"].sort_index()
    held, said = (model.layers["facts"], "last subject"), (model.layers["output"], "last")
    assert (share[held] - 1).abs().max() < 0.01 and (share[said] - 1).abs().max() < 0.01
    # A twin that differs in one of the two tokens is the subject again where that token is what it was.
    early = [(model.layers["tokens"], place) for place in ("first subject", "last subject")]
    for number, e in enumerate(facts):
        apart = [a != b for a, b in zip(e.ids, e.corrupt["subject_swap"].ids, strict=True)]
        differs = apart[e.spans[0].start : e.spans[0].end]
        for cell, own in zip(early, differs, strict=True):
            assert share[*cell, number] == pytest.approx(1.0 if own and sum(differs) == 1 else 0.0, abs=0.05)
    cells = share.index.droplevel("example")
    assert share[~cells.isin([held, said, *early])].abs().max() < 0.01


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_a_fact_written_into_the_layer_holds_exactly_and_its_neighbours_stay(seed: int, kind: str) -> None:
    """The value is known by construction: what another fact of the relation writes, in place of what this one does."""
    model = planted(seed, kind)
    s, (facts, copies) = model.subject, asked(model)
    layer = model.layers["facts"]
    down = s.module(layer, s.family.sites["neurons"].module)
    weight = down.weight if kind == "gpt2" else down.weight.T

    def recalled(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The key of a fact, and what the fact's own neurons write."""
        site, own = Site("neurons", layer), [n.i for n in model.facts[i].neurons]
        key = s.run([facts[i]], {site: Record()})[site][0, facts[i].spans[0].end - 1]
        return key, key[own] @ weight[own]

    mine = model.facts[0]
    other = next(
        i for i, f in enumerate(model.facts) if f.relation == mine.relation and f.answer != mine.answer
    )
    (key, old), (_, new) = recalled(0), recalled(other)
    before = evaluate(s, [*facts, *copies], {"clean": None}).values["clean"]["logprob"]
    moved = []
    for moments in (second_moments(s, [*facts, *copies], cache=False), None):
        edit = WeightEdit(
            layer, "down", rank_one(key, layer, moments, RIDGE)[:, None].float(), (new - old)[None]
        )
        wanted = down(key[None]) + new - old
        with edit.applied(s):
            torch.testing.assert_close(down(key[None]), wanted, atol=1e-4, rtol=1e-4)
            said = s.run([facts[0]], keep=1).logits[0, -1].softmax(-1)
            after = evaluate(s, [*facts, *copies], {"edited": None}).values["edited"]["logprob"]
        assert said[model.facts[other].answer] > 0.9 and after[0] < -4
        moved.append(np.abs(after - before)[1:].max())
    # Other subjects fire some of the same neurons; what text has in common is kept out of the edit.
    assert moved[0] < 1e-3 < 0.01 < moved[1]


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_decoys_do_not_pass(seed: int, kind: str) -> None:
    model, found = planted(seed, kind), fitted(seed, kind)
    table = found.layers_.set_index("layer")
    at = table.loc
    best = at[model.layers["facts"]]
    # Early and vital: its state brings some answers back, and cutting it costs every fact, but copies as much.
    first = at[0]
    assert first.aie > 0.05 and first.fact_loss > 0.8 and first.off_loss > 0.8 and first.spared < 0.1
    assert first.score < 0.05 * best.score
    # Vital for facts only, but the same for all of them: nothing of the subject passes through it.
    enabler = at[model.layers["enabler"]]
    assert enabler.fact_loss > 0.8 and abs(enabler.aie) < 0.01 and enabler.spared > 0.9
    output = at[model.layers["output"]]
    assert output.fact_loss > 0.8 and abs(output.aie) < 0.01
    loud = at[model.layers["loud"]]
    assert abs(loud.aie) < 0.01 and loud.spared > 0.9
    assert table.score.drop(model.layers["facts"]).max() < 0.1 * best.score
    assert best.spared > 0.99 and best.fact_loss > 0.8


def test_without_a_reference_a_vital_layer_looks_like_a_store() -> None:
    model = planted(0, "gpt2")
    facts, _ = asked(model)
    alone = FactMLPs(corruption="subject_swap", n_layers=0).fit(model.subject, facts)
    assert alone.layers_.spared.eq(1).all() and alone.layers_.off_loss.isna().all()
    assert alone.layers_.score[0] > 0.1 > fitted(0, "gpt2").layers_.score[0]


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_cutting_the_neurons_erases_those_facts_and_no_others(seed: int, kind: str) -> None:
    model, found = planted(seed, kind), fitted(seed, kind)
    facts, copies = asked(model)
    # Of some subjects the facts of one relation: their other facts share the subject, and must stay.
    chosen = [i for i, fact in enumerate(model.facts) if fact.relation == 0][:3]
    k = sum(len(model.facts[i].neurons) for i in chosen)
    cut = ablate(found.holding(chosen, k=k))
    kept = right(model, facts, cut)
    assert not kept[chosen].any() and np.delete(kept, chosen).all()
    assert right(model, copies, cut).all()
    truth = [n for fact in model.facts for n in fact.neurons]
    controls = matched_neurons(model.subject, cut.components, 5, facts, scope="subject", avoid=truth)
    assert len(controls) == 5
    for parts in controls:
        assert right(model, facts, cut.with_components(parts)).all()
    assert set(model.busy) & {c for parts in controls for c in parts}  # the controls are active ones


def test_the_whole_layer_and_a_window_that_writes_as_much() -> None:
    for seed, kind in FAMILY:
        model = planted(seed, kind)
        facts, copies = asked(model)
        layer = MLP(model.layers["facts"])
        assert not right(model, facts, ablate([layer])).any() and right(model, copies, ablate([layer])).all()
        vital = [MLP(model.layers[name]) for name in ("tokens", "enabler", "output")]
        near = matched_windows(model.subject, [layer], 1, facts, scope="subject", avoid=vital)
        assert near[0] == (MLP(model.layers["loud"]),)
        assert right(model, facts, ablate(near[0])).all()


def test_the_answer_leaves_the_subject_in_the_extraction_heads() -> None:
    for seed, kind in FAMILY[:2]:
        model = planted(seed, kind)
        facts, _ = asked(model)
        flow = averages(knockout_map(model.subject, facts, window=1), "relative", ["source", "layer"])
        hidden = flow[flow.source == "subject"].set_index("layer")["mean"]
        assert (
            hidden[model.layers["extraction"]] < -80
            and hidden.drop(model.layers["extraction"]).abs().max() < 5
        )
        assert flow[flow.source != "subject"]["mean"].abs().max() < 5
        heads = knockout_map(model.subject, facts, "subject", parts="heads")
        lost = heads[heads.relative < -50]
        for row in lost.itertuples():
            assert (row.layer, row.head) == model.extraction[model.facts[row.example].relation]
        assert len(lost) == len(facts)


def test_what_is_found_fades_as_the_weights_are_blurred() -> None:
    shares = []
    for blur in (0.0, 0.6):
        model, found = planted(1, "llama", blur), fitted(1, "llama", "subject_swap", blur)
        truth = {n for fact in model.facts for n in fact.neurons}
        shares.append(len(set(found.top(len(truth), "neurons")) & truth) / len(truth))
    assert shares[0] == 1 and shares[1] < 0.5
