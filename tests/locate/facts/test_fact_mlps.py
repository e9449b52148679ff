"""The neurons' screen and exact losses against passes by hand, and what the locator refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.locate.facts.fact_mlps import FactMLPs, cut_values
from interp.locate.facts.neurons import agreement, neuron_table, screened
from interp.models.engines.base import Record
from interp.models.sites import MLP, Site, component
from interp.tasks.base import Span
from tests.locate.facts.test_flow import FIVE, PROMPTS
from tests.subjects import subject

PLACE = "last subject"
LAST = [3, 3, 1]
"""Token of that place in each prompt."""


def difference(model, example, taps=None) -> float:
    logits = model.run([example], taps or {}).logits[0, -1].double()
    return float(logits[example.answer_ids[0]] - logits[example.foil_ids[0]])


@pytest.mark.parametrize("family", FIVE)
def test_single_neurons_cost_what_passes_by_hand_say(family: str) -> None:
    model = subject(family)
    table = neuron_table(model, PROMPTS, [0, 2], metric="logit_diff", place=PLACE, exact=4, check=3, seed=0)
    assert len(table) == 3 * 7 and not table.duplicated(["example", "component"]).any()
    for row in table[table.example < 2].itertuples():
        example = PROMPTS[row.example]

        def zero(x: torch.Tensor, at: int = LAST[row.example], j: int = row.neuron) -> torch.Tensor:
            x = x.clone()
            x[:, at, j] = 0.0
            return x

        site = Site("neurons", row.layer)
        cost = difference(model, example) - difference(model, example, {site: zero})
        assert row.exact == pytest.approx(cost, abs=2e-4)
        value = model.run([example], {site: Record()})[site][0, LAST[row.example], row.neuron]
        assert row.activation == pytest.approx(float(value), rel=1e-3, abs=1e-5)
    _, attribution = screened(model, PROMPTS, [0, 2], "logit_diff", PLACE)
    for i in range(3):
        mine = table[(table.example == i) & (table.picked == "screen")]
        assert mine.screen.tolist() == sorted(attribution[i].ravel(), reverse=True)[:4]
    assert table.exact.abs().max() > 1e-2


@pytest.mark.parametrize("metric", ["logit_diff", "logprob", "probability"])
def test_the_screen_is_the_slope_of_the_metric(metric: str) -> None:
    model = subject("llama")
    _, attribution = screened(model, PROMPTS, [1], metric, PLACE)
    example, step = PROMPTS[0], 1e-2
    for j in np.argsort(-np.abs(attribution[0, 0]))[:5]:

        def scaled(by: float, j: int = int(j)) -> float:
            def edit(x: torch.Tensor) -> torch.Tensor:
                x = x.clone()
                x[:, LAST[0], j] *= by
                return x

            logits = model.run([example], {Site("neurons", 1): edit}).logits[0, -1].double()
            answer = logits[example.answer_ids[0]]
            if metric == "logit_diff":
                return float(answer - logits[example.foil_ids[0]])
            logprob = answer - logits.logsumexp(-1)
            return float(logprob.exp() if metric == "probability" else logprob)

        slope = (scaled(1 + step) - scaled(1 - step)) / (2 * step)
        assert attribution[0, 0, j] == pytest.approx(slope, rel=0.05, abs=1e-5)


def test_agreement_tells_rank_and_misses() -> None:
    table = pd.DataFrame(
        {
            "example": [0] * 6,
            "picked": ["screen"] * 3 + ["check"] * 3,
            "screen": [3.0, 2.0, 1.0, 0.2, 0.1, 0.0],
            "exact": [3.0, 2.0, 1.0, 5.0, 0.1, 0.0],
        }
    )
    found = agreement(table)
    assert found["missed"] == pytest.approx(1 / 3) and 0 < found["spearman"] < 1
    assert agreement(table.assign(exact=table.screen)) == {"spearman": pytest.approx(1.0), "missed": 0.0}


def test_layer_cuts_are_measured_over_all_answer_tokens() -> None:
    model = subject("gpt2")
    examples = [
        replace(e, answer_ids=(*e.answer_ids, 9)[: 1 + i % 2], foil_ids=()) for i, e in enumerate(PROMPTS)
    ]
    found = cut_values(model, examples, [ablate([MLP(1)])])
    for i, example in enumerate(examples):
        for column, taps in enumerate(({}, {Site("mlp_out", 1): torch.zeros_like})):
            logits = model.run([example], taps).logits[0, -len(example.answer_ids) :]
            p = logits.softmax(-1)[range(len(example.answer_ids)), list(example.answer_ids)]
            assert found[i, column] == pytest.approx(float(p.mean()), rel=1e-4)


def test_fit_leaves_tidy_tables_and_refuses_what_it_cannot_use() -> None:
    model = subject("llama")
    locator = FactMLPs(samples=2, exact=3, check=2, n_layers=2, window=2)
    assert locator.get_params()["window"] == 2 and "exact=3" in repr(locator)
    found = locator.fit(model, PROMPTS, reference=PROMPTS[:1])
    assert found is locator and list(found.scores_.method.unique()) == ["layers", "neurons"]
    assert set(found.scores_[found.scores_.method == "layers"].component) == {"M0", "M1", "M2"}
    layers = found.layers_
    np.testing.assert_allclose(layers.score, layers.aie * layers.spared)
    assert set(found.neurons_.layer) <= {c.layer for c in found.top(2)}
    assert len(found.neurons_) == 3 * 5 and found.spent_.token_layers > 0
    scores = found.scores_[found.scores_.method == "neurons"].set_index("component").score
    name = found.neurons_.component[0]
    assert scores[name] == pytest.approx(found.neurons_[found.neurons_.component == name].exact.sum() / 3)
    first = found.neurons_[found.neurons_.example == 1].sort_values("exact").component.iloc[-1]
    assert found.holding([1], k=1) == (component(first),) == found.holding(clusters=["c1"], k=1)
    pd.testing.assert_frame_equal(
        FactMLPs(**locator.get_params()).fit(model, PROMPTS, reference=PROMPTS[:1]).scores_, found.scores_
    )
    with pytest.raises(UsageError, match="were measured"):
        found.holding([0], k=100)
    with pytest.raises(UsageError, match="measured no neurons"):
        FactMLPs().holding()
    with pytest.raises(UsageError, match="learns from facts"):
        FactMLPs().fit(model)
    with pytest.raises(NoAcceptedExample):
        FactMLPs().fit(model, [])
    for options in ({"exact": 0}, {"n_layers": 9}, {"check": -1}):
        with pytest.raises(UsageError, match="measure at least one"):
            FactMLPs(**options).fit(model, PROMPTS)
    with pytest.raises(UsageError, match="metric='rank'"):
        FactMLPs(metric="rank").fit(model, PROMPTS)
    with pytest.raises(UsageError, match="no foil"):
        screened(model, [replace(PROMPTS[0], foil_ids=())], [0], "logit_diff", PLACE)
    ending = replace(PROMPTS[0], spans=(Span(7, 9, "subject"),))
    with pytest.raises(UsageError, match="every subject ends its prompt"):
        FactMLPs().fit(model, [ending])


def test_prompts_that_end_in_their_subject_leave_the_numbers_of_the_others() -> None:
    model = subject("gpt2")
    last = len(PROMPTS[0].ids) - 1
    ending = replace(PROMPTS[0], spans=(Span(last, last + 1, "subject"),))
    how = {"samples": 1, "sigma": 1.0, "exact": 2, "check": 1}
    plain = FactMLPs(**how).fit(model, PROMPTS)
    found = FactMLPs(**how).fit(model, [PROMPTS[0], ending, *PROMPTS[1:]])
    for before, after in ((plain.maps_, found.maps_), (plain.neurons_, found.neurons_)):
        assert set(before["example"]) == {0, 1, 2} and set(after["example"]) == {0, 2, 3}
        moved = before.assign(example=[i + (i > 0) for i in before["example"]])
        pd.testing.assert_frame_equal(after.reset_index(drop=True), moved.reset_index(drop=True))
    assert found.holding([2], k=2) == plain.holding([1], k=2)
