"""A counterfactual written into the default model: said, in other words too, and taken back bit for bit."""

from __future__ import annotations

import torch

from interp.intervene.facts import FactEdit, Prefixes, Rewrite, Search, rome, second_moments
from interp.measure.edits import EditRecord, score_edits
from interp.tasks.prose import Prose

LAYER = 4


def test_a_counterfactual_is_said_by_the_real_model_and_taken_back(smollm2, tmp_path, rng_untouched):
    # More tokens than the layer has neurons, 1536, or the moments would have no inverse.
    moments = second_moments(smollm2, Prose(prompt=128, answer=1, n=16), layers=[LAYER], cache=False)
    asked = Rewrite.of_text(smollm2, "The capital of {} is the city of", "Syria", "Managua", true="Damascus")
    record = EditRecord(asked, paraphrases=(smollm2.tokens.encode("The capital of Syria is").ids,))
    edit = rome(smollm2, asked, LAYER, moments, prefixes=Prefixes(), search=Search(steps=12))
    weight = smollm2.module(LAYER, smollm2.family.sites["neurons"].module).weight
    before = weight.detach().clone()
    path = edit.save(tmp_path / "syria.safetensors")
    assert path.stat().st_size < 20_000  # a direction read and a direction written
    found = FactEdit.load(path, smollm2)
    frame = score_edits(smollm2, [record], [found]).set_index(["state", "kind"])
    assert frame["success"].groupby("state").sum().to_dict() == {"before": 0.0, "after": 2.0}
    assert frame.loc[("after", "efficacy"), "top"].item() == 1.0
    assert frame.loc[("after", "efficacy"), "p_new"].item() > 0.5
    question = smollm2.batch([_Prompt(asked.ids)], forced=False)
    with found.applied(smollm2):
        assert tuple(smollm2.generate(question, len(asked.target))[0]) == asked.target
    assert torch.equal(weight.detach(), before)
    assert tuple(smollm2.generate(question, len(asked.true))[0]) == asked.true


class _Prompt:
    answer_ids: tuple[int, ...] = ()
    spans = ()

    def __init__(self, ids: tuple[int, ...]):
        self.ids = ids
