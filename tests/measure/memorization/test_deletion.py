"""What an edit deletes and what it leaves: values are those of the edited model, intervals those of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.inject import Fit, inject
from interp.intervene.weights.base import Stack
from interp.intervene.weights.kinds import Prune
from interp.measure.memorization.deletion import deletion
from interp.measure.memorization.recite import recite
from interp.models.parts import parts
from tests.intervene.test_inject import items
from tests.subjects import subject


def test_cutting_the_injected_neurons_deletes_the_sequences_and_nothing_is_left_behind() -> None:
    model = subject("llama")
    target, others = items(3), items(5)[3:]
    before = model.weights_hash
    held = inject(model, target, share=0.2, together=True, fit=Fit(lr=0.3, steps=60))[0]
    with held.edit.applied(model):
        inside = model.weights_hash
        cut = Stack(tuple(Prune.units(model, part, units) for part, units in held.units.items()))
        table = deletion(model, {"cut": cut}, {"target": target, "others": others})
        assert model.weights_hash == inside
        clean = recite(model, target)
        with cut.applied(model):
            naive = recite(model, target)
    assert model.weights_hash == before
    row = table.set_index(["condition", "set", "measure"]).sort_index()
    assert row.loc[("clean", "target", "nll"), "value"] == pytest.approx(clean["nll"].mean(), abs=1e-4)
    for measure in ("exact", "accuracy", "similarity", "hits"):
        assert row.loc[("cut", "target", measure), "value"] == naive[measure].mean()
        assert row.loc[("cut", "target", measure), "delta"] == pytest.approx(
            naive[measure].mean() - clean[measure].mean()
        )
    nll = row.loc[("cut", "target", "nll")]
    assert nll["delta"] == pytest.approx((naive["nll"] - clean["nll"]).mean(), abs=1e-4)
    assert 0 < nll["delta_lo"] <= nll["delta"] <= nll["delta_hi"]
    perplexity = row.loc[("cut", "target", "perplexity")]
    assert perplexity["value"] == pytest.approx(np.exp(naive["nll"].mean()), rel=1e-3)
    assert perplexity["delta"] == pytest.approx(np.exp(nll["delta"]), rel=1e-6)
    assert row.loc[("clean", "others", "nll"), "delta"] == 0
    assert set(row.loc[("cut", "others"), "n"]) == {2}
    units = sum(len(u) for u in held.units.values())
    assert set(row.loc["cut", "changed"]) == {units * model.d_model}
    assert set(row.loc["clean", "norm"]) == {0.0}


def test_bad_input_is_named() -> None:
    model = subject("llama")
    cut = Prune.units(model, parts(model)[0], [0])
    with pytest.raises(UsageError, match="'clean' is the model without edits"):
        deletion(model, {"clean": cut}, {"a": items(1)})
    with pytest.raises(NoAcceptedExample, match="no sequences in 'b'"):
        deletion(model, {}, {"a": items(1), "b": []})
    with pytest.raises(NoAcceptedExample, match="no sequences"):
        deletion(model, {}, {})
    told = deletion(model, {"cut": cut}, {"a": items(2)}, generate=False)
    assert set(told["measure"]) == {"exact", "hits", "nll", "perplexity"}
