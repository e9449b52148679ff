"""Planted key-value MLPs: small models, built by hand, that recall facts in one known layer, at one token.

A subject is two tokens, `a b`; its facts are `a b ... r -> o`, an object for each relation. What is written where:

| part | layer | does |
|---|---|---|
| MLP 0 | 0 | turns embeddings into the codes that all else reads: *early and vital*, for facts and copies alike |
| previous-token head | 1 | writes the code of `a` beside that of `b` |
| enabler MLP | before the facts | writes at each `b` the sign without which no fact neuron fires: the same for all |
| fact MLP | known | neurons that fire on one pair `a b` each, and write the code of one object for one relation |
| loud MLP | drawn | fires at each `b` and writes as much as the fact MLP, where nothing reads |
| extraction heads | after the facts | one a relation: from `r` they read the object of that relation at `b` |
| copying head | anywhere | in `k v ... k` from the second `k` reads `v` |
| output MLP | after the heads | turns what heads wrote into logits: late, at the last token, vital for all |

The pairs share their tokens, so no single token tells a subject. Everything is turned by a random basis, neurons are in
random order among others that write little, and norms have random gains. Both kinds of module are made: GPT-2 (learned
positions, LayerNorm, GELU) and Llama (rotary positions, RMS norm, gated MLPs).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from interp.models.sites import Neuron
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span

from .facts_build import BOS, FILLER, KEY, N_O, Draft, Fact, O, R


@dataclass(eq=False)
class Planted:
    """A planted model and what is known about it.

    Attributes:
        layers: layer of each part.
        copying: layer and head.
        busy: neurons of the fact layer that fire at each `b` and write where nothing reads.
    """

    subject: CausalLM
    layers: dict[str, int]
    facts: list[Fact]
    copying: tuple[int, int]
    extraction: list[tuple[int, int]]
    busy: list[Neuron] = field(default_factory=list)

    def prompts(self, rng: np.random.Generator, facts: list[Fact] | None = None) -> list[Example]:
        """One prompt a fact, with a twin about another subject that has another answer."""
        return [self._ask(fact, rng) for fact in facts or self.facts]

    def _ask(self, fact: Fact, rng: np.random.Generator) -> Example:
        before = [BOS, *rng.choice(FILLER, rng.integers(1, 4))]
        after = [*rng.choice(FILLER, rng.integers(1, 4)), R[fact.relation]]
        start = len(before)
        spans = (
            Span(start, start + 2, "subject"),
            Span(len(before) + 1 + len(after), 2 + start + len(after), "relation"),
        )

        def example(f: Fact, foil: int) -> Example:
            ids = tuple(int(i) for i in (*before, f.a, f.b, *after))
            return Example(
                "planted facts", ids, (f.answer,), spans=spans, foil_ids=(foil,),
                candidates=tuple((o,) for o in sorted(O, key=lambda o: o != f.answer)), chance=1 / N_O,
                cluster=f"{f.a} {f.b}", meta={"relation": f.relation, "fact": self.facts.index(f)},
            )  # fmt: skip

        others = [f for f in self.facts if f.relation == fact.relation and f.answer != fact.answer]
        twin = others[rng.integers(len(others))]
        return replace(example(fact, twin.answer), corrupt={"subject_swap": example(twin, fact.answer)})

    def copies(self, rng: np.random.Generator, n: int) -> list[Example]:
        """Prompts `k v k v ... k` whose answer stands in them."""
        out = []
        for i in range(n):
            keys, values = rng.permutation(KEY)[:3], rng.permutation(O)[:3]
            asked = int(rng.integers(3))
            ids = (BOS, *(int(x) for pair in zip(keys, values, strict=True) for x in pair), int(keys[asked]))
            answer, foil = int(values[asked]), int(values[(asked + 1) % 3])
            spans = (Span(2 + 2 * asked, 3 + 2 * asked, "value", 0), Span(len(ids) - 1, len(ids), "query", 0))
            options = tuple((o,) for o in sorted(O, key=lambda o, answer=answer: o != answer))
            out.append(
                Example("planted copies", ids, (answer,), spans=spans, foil_ids=(foil,), candidates=options,
                        chance=1 / N_O, cluster=f"copy {i}")
            )  # fmt: skip
        return out


@cache
def planted(seed: int, kind: str = "gpt2", blur: float = 0.0) -> Planted:
    """A model of the family, `gpt2` or `llama`; shared, so leave it as it was.

    Args:
        blur: noise on every matrix, in standard deviations of its own entries: how hard it is to find anything.
    """
    draft = Draft(seed, kind == "llama")
    module = draft.module()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if blur and weight.ndim == 2:
                weight += blur * weight.std() * torch.randn(weight.shape, generator=noise)
    subject = CausalLM(module, None, name=f"planted facts {kind} {seed}")
    return Planted(subject, draft.layers, draft.facts, draft.copying, draft.extraction, draft.busy)
