"""Hidden spans: as if they had never been read, in whole passes, in batches and in generation."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.knockout import mask_of, visible_in
from interp.measure.outcomes import evaluate
from interp.models.batch import Batch
from interp.models.sites import Head, Site
from interp.trace.each import Spent
from tests.subjects import ALL, examples, subject

HIDDEN = (3, 4, 5)
"""The value of the examples."""


def without(s, e, hidden):
    """Logits of the answer by a model that reads the other tokens only, each at its own position."""
    ids = e.full_ids[:-1]
    kept = [i for i in range(len(ids)) if i not in hidden]
    batch = Batch.of_ids([[ids[i] for i in kept]])
    batch = Batch(batch.ids, batch.mask, torch.tensor([kept]), batch.pad, batch.answer_start)
    return s.run(batch, keep=len(e.answer_ids)).logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3"])
def test_what_is_hidden_might_as_well_not_be_there(family):
    s, data = subject(family), examples()
    batch = s.batch(data)
    for roles, hidden in (("value", HIDDEN), (("key", "value"), (1, 2, *HIDDEN)), ((0, 7), (0, 7))):
        with s.apply(interp.hide(roles)):
            padded = s.run(batch, keep=3).logits
            alone = s.run([data[0]], keep=3).logits[0]
        wanted = torch.stack([without(s, e, hidden) for e in data])
        assert (padded - wanted).abs().max() < 1e-4, roles
        assert (alone - wanted[0]).abs().max() < 1e-4, roles
        assert (wanted - s.run(batch, keep=3).logits).abs().max() > 1e-3, roles


@pytest.mark.parametrize("family", ALL)
def test_it_is_the_knockout_of_all_heads_in_all_rows_that_are_read(family):
    s, data = subject(family), examples((40, 24))
    batch = s.batch(data)
    heads = [Head(i, h) for i in range(s.n_layers) for h in range(s.n_heads)]
    for scope in ("all", "answer"):
        items = [interp.hide("value", scope), ablate(heads, "knockout", scope, keys="value")]
        mine, theirs = dict(s.each(items, batch, keep=3)).values()
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_no_row_outside_has_an_edge_to_what_is_hidden_and_the_rest_sums_to_one():
    s, e = subject("llama"), examples((24,))[0]
    got = {}
    for layer in (0, 1):
        with s.apply(interp.hide("value", layers=1)):
            s.run([e], {Site("attention", layer): lambda call, layer=layer: got.update({layer: call})})
    seen = {layer: pattern(call) for layer, call in got.items()}
    later = range(6, len(e.full_ids) - 1)
    assert seen[1][:, later][:, :, HIDDEN].max() == 0
    assert seen[0][:, later][:, :, HIDDEN].min() > 0
    assert seen[1][:, 4, 3].min() > 0  # hidden tokens see one another
    torch.testing.assert_close(seen[1].sum(-1), torch.ones_like(seen[1].sum(-1)))


def pattern(call):
    """Attention of a call, h t s."""
    k = call.k.repeat_interleave(call.q.shape[1] // call.k.shape[1], 1)
    scores = (call.q @ k.transpose(-1, -2)) * call.scaling
    return scores.masked_fill(~visible_in(mask_of(call)), float("-inf")).softmax(-1)[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_it_holds_for_every_token_that_is_generated(family):
    s, data = subject(family), examples()
    cut = interp.hide("value")
    with s.apply(cut):
        out = s.generate(data, 4)
        for e, said in zip(data, out, strict=True):
            ids = list(e.ids)
            for _ in range(4):
                whole = Batch.of_ids([ids])
                start = torch.tensor([len(e.ids) - 1])
                batch = Batch(whole.ids, whole.mask, whole.positions, whole.pad, start, (e,))
                ids.append(int(s.run(batch, keep=1).logits[0, -1].argmax()))
            assert said == ids[len(e.ids) :]


def test_rows_of_a_batch_have_their_own():
    s, data = subject("gemma2"), examples()
    every = [interp.hide("value"), interp.hide("key") + interp.hide("value"), None]
    batch = s.batch(data)
    mixed = s.run(batch, lower_conditions(s, batch, every, torch.tensor([1, 2, 0]))).logits
    for row, condition in enumerate([every[1], None, every[0]]):
        with s.apply(*([condition] if condition else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)
    both = interp.hide(["key", "value"])
    with s.apply(every[1]):
        one = s.run(batch).logits
    with s.apply(both):
        torch.testing.assert_close(s.run(batch).logits, one, atol=1e-5, rtol=0)


def test_rows_before_the_first_hidden_token_are_not_run_again():
    s, e = subject("llama"), examples((40,))[0]
    spent = Spent()
    list(s.each([interp.hide(30)], [e], spent=spent))
    assert spent.prompt_tokens == 40 + 9


def test_it_is_measured_as_a_condition():
    s, data = subject("llama"), examples()
    out = evaluate(s, data, {"clean": None, "hidden": interp.hide("value")})
    with s.apply(interp.hide("value")):
        again = evaluate(s, data, {"clean": None})
    assert out.values["hidden"]["logprob"] == pytest.approx(again.values["clean"]["logprob"], abs=1e-4)
    assert abs(out.values["hidden"]["logprob"] - out.values["clean"]["logprob"]).max() > 1e-3


def test_its_name_says_all_that_is_hidden():
    assert repr(interp.hide("value", "answer", 2)) == "hide(value, scope=answer, layers=2)"
    ways = [
        interp.hide("value"),
        interp.hide("key"),
        interp.hide("value", "answer"),
        interp.hide("value", layers=1),
    ]
    assert len({w.key() for w in ways}) == 4
    assert interp.hide("value").config() == [
        {"kind": "hide", "keys": "value", "scope": "all", "layers": "all"}
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interp.hide([]), "name span roles or token positions"),
        (lambda: interp.hide("all"), "name span roles or token positions"),
        (lambda: interp.hide("value", layers=()), "layers is empty"),
        (lambda: interp.hide("value", layers=7), "llama has layers 0 to 2"),
        (lambda: interp.hide("stale_value"), "no span of that role.*key value"),
    ],
)
def test_refusals_name_the_way_out(make, message):
    s = subject("llama")
    with pytest.raises(UsageError, match=message), s.apply(make()):
        s.run(examples())
