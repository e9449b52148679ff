"""Edge-patched runs against a dense pass that sums each reader's input edge by edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import EngineError, NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.reference import Reference
from interp.locate.circuits.circuit import Circuit
from interp.locate.circuits.graph import Graph, edge
from interp.locate.circuits.patched import EdgeRuns, edge_effects
from interp.locate.circuits.streams import Pairs, Projection, Written
from interp.models.sites import MLP, Head
from tests.locate.circuits.dense import FAMILIES, Dense, asked, difference, whole
from tests.subjects import examples, subject

DATA = examples((13, 9, 20))
TWIN = Reference(None, pool="twin", twin="value_swap")


def pairs_of(s, data=DATA, tokens=None):
    ((_, pairs),) = Pairs.of(s, data, "value_swap", tokens)
    return pairs


def rows(logits, pairs):
    """Logits that predict each example's answer."""
    first = pairs.clean.width - logits.shape[1]
    return [
        logits[i, pairs.clean.answer_columns(i).start - first :][: len(e.answer_ids)]
        for i, e in enumerate(pairs.examples)
    ]


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_full_is_the_clean_run_and_empty_the_corrupt_one(family):
    """Padded rows, beyond the sliding window."""
    s = subject(family)
    pairs = pairs_of(s, examples())
    runs = EdgeRuns(s, pairs.clean, Written.of(s, pairs, TWIN))
    clean, corrupt = (rows(s.run(b).logits, pairs) for b in (pairs.clean, pairs.corrupt))
    close(rows(runs.logits(runs.graph.full), pairs), clean)
    close(rows(runs.logits([]), pairs), corrupt)
    assert max(float((a - b).abs().max()) for a, b in zip(clean, corrupt, strict=True)) > 0.1


@pytest.mark.parametrize(
    ("family", "source"),
    [*((f, "twin") for f in FAMILIES), ("llama", "mean"), ("gpt2", "role"), ("neox", "role")],
)
def test_any_circuit_equals_explicit_sums_over_edges(family, source):
    s = subject(family)
    pairs = pairs_of(s)
    reference = TWIN if source == "twin" else Reference(DATA, pool="pooled" if source == "mean" else "role")
    given = Written.of(s, pairs, reference)
    runs = EdgeRuns(s, pairs.clean, given)
    dense = Dense(s)
    rng = np.random.default_rng(0)
    for share in (0.3, 0.8):
        matrix = runs.graph.full & (rng.random(runs.graph.full.shape) < share)
        names = {repr(e) for e in runs.graph.named(matrix)}
        wanted = []
        for i, e in enumerate(DATA):
            other = (
                dense.run(asked(e, corrupt=True), whole)[1] if source == "twin" else means(s, given, pairs, i)
            )

            def via(writer, reader, wrote, names=names, other=other):
                return wrote if f"{writer}->{reader}" in names else other[writer]

            wanted.append(dense.run(asked(e, corrupt=False), via)[0][-len(e.answer_ids) :].detach())
        order = [DATA.index(next(d for d in DATA if d.ids == e.ids)) for e in pairs.examples]
        close(rows(runs.logits(matrix), pairs), [wanted[i] for i in order])
        close(
            rows(runs.logits(Circuit("c", frozenset(map(edge, names)), runs.graph)), pairs),
            [wanted[i] for i in order],
        )


def means(s, given, pairs, i):
    """What the reference says each writer wrote, for the tokens of an example."""
    row = next(r for r, e in enumerate(pairs.examples) if e.ids == DATA[i].ids)
    first = int(pairs.clean.pad[row])

    def own(x):
        x = x.expand(len(pairs.examples), pairs.clean.width, *x.shape[2:])
        return x[row, first:].float()

    out = {"embed": own(given.embed)}
    for layer in range(s.n_layers):
        for h in range(s.n_heads):
            out[f"L{layer}H{h}"] = own(given.z[layer])[:, h] @ s.out_weight(layer)[h].detach()
        out[f"M{layer}"] = own(given.mlp[layer])
    return out


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_effects_of_single_edges_are_those_of_the_dense_pass(family):
    s = subject(family)
    dense = Dense(s)
    graph = Graph.of(s)
    chosen = np.random.default_rng(1).choice([repr(e) for e in graph.edges], 8, replace=False)
    found = edge_effects(s, DATA, chosen)
    assert found.edge.tolist() == list(chosen) and set(found.n) == {3}
    with torch.no_grad():
        other = [dense.run(asked(e, corrupt=True), whole)[1] for e in DATA]
        for name, exact in zip(found.edge, found.exact, strict=True):
            wanted = []
            for e, given in zip(DATA, other, strict=True):

                def via(writer, reader, wrote, given=given, name=name):
                    return given[writer] if f"{writer}->{reader}" == name else wrote

                ids = asked(e, corrupt=False)
                wanted.append(
                    float(difference(dense.run(ids, via)[0], e) - difference(dense.run(ids, whole)[0], e))
                )
            assert exact == pytest.approx(np.mean(wanted), abs=2e-5)
    assert found.exact.abs().max() > 1e-2


def test_batches_change_nothing():
    s = subject("llama")
    names = ["embed->L0KV1.v", "L0H1->L2H3.q", "M1->logits"]
    whole_, parts = (edge_effects(s, DATA, names, corruption="value_swap") for _ in range(2))
    solo = [edge_effects(s, [e], names).exact for e in DATA]
    np.testing.assert_allclose(whole_.exact, np.mean(solo, axis=0), atol=1e-5)
    assert whole_.equals(parts)


def test_applied_edits_hold_in_edge_patched_runs_or_are_refused():
    s = subject("llama")
    pairs = pairs_of(s)
    with s.apply(ablate([Head(0, 1), MLP(1)])):
        runs = EdgeRuns(s, pairs.clean, Written.of(s, pairs, TWIN))
        cut = rows(s.run(pairs.clean).logits, pairs)
        close(rows(runs.logits(runs.graph.full), pairs), cut)
    query = ablate([Head(1, 0)], "mean_query", reference=Reference(DATA))
    with s.apply(query), pytest.raises(UsageError, match=r"edits q\[1\], and the inputs of readers are made"):
        EdgeRuns(s, pairs.clean, Written.of(s, pairs, TWIN))


def test_what_cannot_be_run_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"gemma2 .* norms what attention writes"):
        edge_effects(subject("gemma2"), DATA, ["embed->logits"])
    s = subject("llama")
    with pytest.raises(UsageError, match="no corruption 'x'"):
        edge_effects(s, DATA, ["embed->logits"], corruption="x")
    with pytest.raises(NoAcceptedExample):
        edge_effects(s, [], ["embed->logits"])
    with pytest.raises(UsageError, match="leave out the reference"):
        edge_effects(s, DATA, ["embed->logits"], reference=DATA)
    with pytest.raises(UsageError, match="write one of resample, mean"):
        edge_effects(s, DATA, ["embed->logits"], ablation="zero")
    with pytest.raises(UsageError, match="a reference with data"):
        edge_effects(s, DATA, ["embed->logits"], ablation="mean", reference=TWIN)

    class Packed(torch.nn.Module):
        weight, bias = torch.zeros(2, dtype=torch.uint8), None

    monkeypatch.setattr(s, "module", lambda layer, path: Packed())
    with pytest.raises(EngineError, match="layer 1: a quantised projection"):
        Projection.of(s, 1, "q")
