"""ContextHeads against loops over heads and sums by hand, on tiny models; and what `taken` says of sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.reference import Reference
from interp.locate.facts.context_heads import ContextHeads, written
from interp.measure.conflict import CONTEXT, MEMORY, OTHER, parted, taken
from interp.measure.stats import fdr, sign_flip
from interp.models.engines.base import Record
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.tiny import FAMILIES, tiny


def model(family: str) -> CausalLM:
    return CausalLM(tiny(family), None, name=family)


def examples(n: int = 5) -> list[Example]:
    """Prompts of unlike lengths whose answer and foil part ways at the first or the second token."""
    out = []
    for i in range(n):
        rng = np.random.default_rng(i)
        ids = tuple(int(x) for x in rng.integers(0, 250, 9 + 2 * i))
        head = (int(rng.integers(250)),) if i % 2 else ()
        ours, theirs = 10 + i, 40 + i
        out.append(
            Example("made up", ids, (*head, ours, 3), spans=(Span(2, 4, "counter_value"), Span(5, 7, "subject")),
                    foil_ids=(*head, theirs), alternatives=((*head, 70 + i, 5),), cluster=f"c{i // 2}")
        )  # fmt: skip
    return out


def test_prompts_end_where_the_answers_part_ways() -> None:
    first, second = (parted(e) for e in examples(2))
    assert first.ids == examples(1)[0].ids and (first.answer_ids, first.foil_ids) == ((10,), (40,))
    e = examples(2)[1]
    assert second.ids == e.ids + e.answer_ids[:1] and (second.answer_ids, second.foil_ids) == ((11,), (41,))
    assert second.alternatives == ((71,),)
    # Another right answer that begins as the foil does is none here.
    assert parted(replace(e, alternatives=(e.foil_ids,))).alternatives == ()
    with pytest.raises(UsageError, match="cannot be told apart"):
        parted(replace(e, foil_ids=e.answer_ids[:1]))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_head_against_a_run_of_its_own(family: str) -> None:
    subject = model(family)
    every = [parted(e) for e in examples()]
    found = ContextHeads().fit(subject, examples())

    def balance(cut: object) -> list[float]:
        out = []
        for e in every:
            with subject.apply(cut):  # type: ignore[arg-type]
                row = subject.run([e], keep=1).logits[0, -1]
            out.append(float(row[e.foil_ids[0]] - row[e.answer_ids[0]]))
        return out

    clean = np.array(balance(ablate([])))
    np.testing.assert_allclose(found.balance_, clean, atol=2e-4)
    for head in (Head(0, 1), Head(1, 3), Head(2, 0)):
        for name, sign, cut in (
            ("cut", 1, ablate([head], scope="answer")),
            ("read", 1, ablate([head], "knockout", "answer", keys="counter_value")),
            ("recall", -1, ablate([head], "knockout", "answer", keys="subject")),
        ):
            wanted = sign * (clean - np.array(balance(cut)))
            np.testing.assert_allclose(found.per_example_[name][:, head.layer, head.head], wanted, atol=2e-4)
    assert all(np.ptp(found.per_example_[name]) > 0.01 for name in ("cut", "read", "recall"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_what_heads_write_is_their_layer_s_share_of_the_balance(family: str) -> None:
    subject = model(family)
    every = [parted(e) for e in examples()]
    shares = written(subject, every)
    unembed = subject.hf.get_output_embeddings().weight.detach()
    norm = subject.hf.transformer.ln_f if family == "gpt2" else subject.hf.model.norm
    for i, e in enumerate(every):
        last = Site("resid_post", subject.n_layers - 1)
        outs = [Site("attn_out", layer) for layer in range(subject.n_layers)]
        trace = subject.run([e], {site: Record() for site in (last, *outs)}, keep=1)
        x = trace[last][0, -1].double()
        u = (unembed[e.foil_ids[0]] - unembed[e.answer_ids[0]]).double() * norm.weight.detach().double()
        if family == "gpt2":
            scale = (x.var(unbiased=False) + norm.eps).rsqrt()
            u = u - u.mean()
        else:
            scale = (x.pow(2).mean() + norm.variance_epsilon).rsqrt()
        for layer, site in enumerate(outs):
            out = trace[site][0, -1].double()
            if family == "gpt2":
                out = out - subject.hf.transformer.h[layer].attn.c_proj.bias.detach().double()
            assert shares[i, layer].sum() == pytest.approx(float(scale * (u @ out)), abs=1e-4)


def test_tables_follow_from_the_examples() -> None:
    subject = model("llama")
    found = ContextHeads(level=1.0, seed=4).fit(subject, examples(6))
    own = found.heads_
    assert own["component"].tolist() == [repr(h) for h in subject.heads()] and set(own["n"]) == {6}
    cut = found.per_example_["cut"]
    clusters = [e.cluster for e in examples(6)]
    row = own.set_index("component").loc["L1H2"]
    assert row["cut"] == pytest.approx(cut[:, 1, 2].mean()) and row["kv_head"] == 1
    assert row["cut_p"] == sign_flip(cut[:, 1, 2], clusters, seed=4)
    pd.testing.assert_series_equal(own["cut_q"], fdr(own, "cut_p")["q"], check_names=False)
    # The balance is context less memory, so what it loses is what one answer loses and the other does not.
    np.testing.assert_allclose(own["cut"], own["context_lost"] - own["memory_lost"], atol=1e-5)
    context, memory = found.ranking("context"), found.ranking("memory")
    assert context["component"].tolist() == memory["component"].tolist()[::-1]
    assert found.carriers("context") == tuple(
        Head(r.layer, r.head) for r in context[context.score > 0].itertuples()
    )
    assert {*own["carries"]} == {"context", "memory"}
    strict = ContextHeads(level=0.0).fit(subject, examples(6))
    assert strict.carriers("context") == strict.carriers("memory") == () and {*strict.heads_["carries"]} == {
        ""
    }


def test_answer_and_foil_exchanged_exchange_the_sides() -> None:
    subject = model("gpt2")
    plain = ContextHeads().fit(subject, examples())
    turned = [replace(e, answer_ids=e.foil_ids, foil_ids=e.answer_ids[: len(e.foil_ids)]) for e in examples()]
    found = ContextHeads().fit(subject, turned)
    assert found.top(3) == plain.top(3, "memory")
    np.testing.assert_allclose(found.per_example_["write"], -plain.per_example_["write"], atol=1e-6)


def test_means_stand_in_for_heads() -> None:
    subject = model("llama")
    found = ContextHeads("mean").fit(subject, examples())
    every = [parted(e) for e in examples()]
    cut = ablate([Head(1, 1)], "mean", "answer", Reference(every))
    two = taken(subject, every, {"": None, "cut": cut})
    np.testing.assert_allclose(
        found.per_example_["cut"][:, 1, 1], two.margin[:, 1] - two.margin[:, 0], atol=1e-4
    )
    zero = ContextHeads().fit(subject, examples())
    assert abs(zero.heads_["cut"] - found.heads_["cut"]).max() > 0.01


def test_sides_are_the_likeliest_token_s() -> None:
    subject = model("gpt2")
    e = parted(examples(1)[0])
    best = int(subject.run([e], keep=1).logits[0, -1].argmax())
    cases = {
        MEMORY: replace(e, answer_ids=(best,)),
        CONTEXT: replace(e, foil_ids=(best,)),
        OTHER: e,
        "alternative": replace(e, alternatives=((best,),)),
    }
    found = taken(subject, list(cases.values()), {"": None})
    assert found.sides[:, 0].tolist() == [MEMORY, CONTEXT, OTHER, MEMORY]
    assert found.share(MEMORY)[:, 0].tolist() == [1, 0, 0, 1]
    logs = subject.run([e], keep=1).logits[0, -1].float().log_softmax(-1)
    assert found.memory[2, 0] == pytest.approx(float(logs[10]), abs=1e-5)
    assert found.margin[2, 0] == pytest.approx(float(logs[10] - logs[40]), abs=1e-5)


def test_bad_input() -> None:
    subject = model("gpt2")
    with pytest.raises(UsageError, match="learns from conflicts"):
        ContextHeads().fit(subject)
    with pytest.raises(UsageError, match="write 'zero' or 'mean'"):
        ContextHeads("resample").fit(subject, examples())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes no reference"):
        ContextHeads().fit(subject, examples(), reference=examples())
    with pytest.raises(UsageError, match="no 'value' span; name the role with keys="):
        ContextHeads(keys="value").fit(subject, examples())
    with pytest.raises(UsageError, match="no 'person' span; name the role with about="):
        ContextHeads(about="person").fit(subject, examples())
    with pytest.raises(NoAcceptedExample, match="no conflict"):
        ContextHeads().fit(subject, [])
    with pytest.raises(UsageError, match="side is 'weights'"):
        ContextHeads().fit(subject, examples(2)).carriers("weights")
