"""A GPT-2 built by hand whose facts lie in one MLP: a key-value memory, with nothing trained.

A prompt is `BOS, fillers, subject, relation`. In one layer, one neuron a subject fires at that subject's token and
writes both of its objects, each into the space of its relation; the MLPs of the other layers hold small random weights.
In the last layer, one head a relation carries the object from the subject to the relation's token. `shared` neurons
fire at every token and write nothing, so that keys of different subjects are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers as hf

from interp.intervene.facts import Prefixes, Rewrite
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids

SUBJECTS, RELATIONS, OBJECTS, FILLERS = 12, 2, 8, 6
BOS = 0
LAYERS = 3
FIRE = 6.0
"""What a subject's neuron gives at its subject."""


@dataclass
class Memory:
    """The model and what it knows.

    Attributes:
        model: the model as a subject.
        layer: whose MLP holds the facts.
        facts: object's id of each (subject, relation).
    """

    model: CausalLM
    layer: int
    facts: dict[tuple[int, int], int]

    def prompt(self, about: int, relation: int, fillers: int = 2) -> Ids:
        """A question; the subject is its last token but one."""
        return (BOS, *(filler(i) for i in range(fillers)), name(about), relation_token(relation))

    def rewrite(self, about: int, relation: int, new: int) -> Rewrite:
        """The fact with another object, by its id."""
        ids = self.prompt(about, relation)
        return Rewrite(ids, (3, 4), (new,), (self.facts[about, relation],), lead=1)

    def answers(self) -> dict[tuple[int, int], torch.Tensor]:
        """Logits after every question."""
        asked = list(self.facts)
        batch = self.model.batch([Example("fact", self.prompt(*q), ()) for q in asked], forced=False)
        return dict(zip(asked, self.model.run(batch, keep=1).logits[:, -1], strict=True))

    def says(self) -> dict[tuple[int, int], int]:
        """The greedy answer to every question."""
        return {q: int(logits.argmax()) for q, logits in self.answers().items()}

    def text(self) -> list[Example]:
        """Text in which every subject is named with every relation."""
        return [Example("text", self.prompt(*q, fillers=1 + sum(q) % 4), ()) for q in self.facts]


def name(about: int) -> int:
    """Token of a subject."""
    return 1 + about


def relation_token(relation: int) -> int:
    """Token of a relation."""
    return 1 + SUBJECTS + relation


def thing(i: int) -> int:
    """Token of an object."""
    return 1 + SUBJECTS + RELATIONS + i


def filler(i: int) -> int:
    """Token of a filler."""
    return 1 + SUBJECTS + RELATIONS + OBJECTS + i


CONTEXTS = Prefixes.given([(filler(3),), (filler(4), filler(5), filler(3))])


def memory(seed: int, shared: int = 0) -> Memory:
    """A model with facts, layer and coordinates of the seed's own."""
    rng = np.random.default_rng(seed)
    vocab = 1 + SUBJECTS + RELATIONS + OBJECTS + FILLERS
    # Coordinates: what token, is it a subject, an object for each relation, what to say.
    flag, attribute = vocab, [vocab + 1 + r * OBJECTS for r in range(RELATIONS)]
    said = vocab + 1 + RELATIONS * OBJECTS
    size = said + OBJECTS
    d = size + 1 + (size + 1) % RELATIONS
    # Orthonormal and orthogonal to the ones, so that a layer norm only scales.
    centred = rng.standard_normal((d, size))
    basis = np.linalg.qr(centred - centred.mean(0))[0]
    unit = np.sqrt(d / 2)  # embeddings have squared norm 2, so this is their length behind a norm, over it
    width = SUBJECTS + shared
    config = hf.GPT2Config(
        vocab_size=vocab, n_positions=32, n_embd=d, n_layer=LAYERS, n_head=RELATIONS, n_inner=width,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        module = hf.GPT2LMHeadModel(config).eval()
    state = {k: np.zeros(tuple(v.shape)) for k, v in module.state_dict().items()}
    for key in state:
        if "ln_" in key and key.endswith("weight"):
            state[key] += 1.0
    embedding = np.zeros((vocab, size))
    embedding[np.arange(vocab), np.arange(vocab)] = np.sqrt(2)
    for about in range(SUBJECTS):
        embedding[name(about), name(about)] = embedding[name(about), flag] = 1.0
    state["transformer.wte.weight"] = embedding @ basis.T
    layer = int(rng.integers(LAYERS - 1))
    facts = {(s, r): thing(int(rng.integers(OBJECTS))) for s in range(SUBJECTS) for r in range(RELATIONS)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}.mlp."
        state[at + "c_fc.weight"] = 0.05 * rng.standard_normal((d, width))
        state[at + "c_proj.weight"] = 0.05 * rng.standard_normal((width, size)) @ basis.T
    at = f"transformer.h.{layer}.mlp."
    read, write = np.zeros((size, width)), np.zeros((width, size))
    bias = np.full(width, -FIRE)
    for about in range(SUBJECTS):
        read[name(about), about] = 2 * FIRE / unit
        for r in range(RELATIONS):
            write[about, attribute[r] + facts[about, r] - thing(0)] = 1 / FIRE
    if shared:
        read[:, SUBJECTS:] = rng.standard_normal((size, shared)) / unit
        bias[SUBJECTS:] = 3.0
    state[at + "c_fc.weight"], state[at + "c_fc.bias"] = basis @ read, bias
    state[at + "c_proj.weight"] = write @ basis.T
    d_head = d // RELATIONS
    q, k, v, o = (np.zeros((RELATIONS, size, d_head)) for _ in range(4))
    for r in range(RELATIONS):
        for other in range(RELATIONS):
            # At its own relation a head looks at the subject, at another one at BOS.
            q[r, relation_token(other), 0 if other == r else 1] = 40 * np.sqrt(d_head) / d
        k[r, flag, 0], k[r, BOS, 1] = np.sqrt(2), 1.0
        for j in range(OBJECTS):
            v[r, attribute[r] + j, j] = 2 / np.sqrt(d)
            o[r, said + j, j] = 2.0
    at = f"transformer.h.{LAYERS - 1}.attn."
    flat = [basis @ m.transpose(1, 0, 2).reshape(size, d) for m in (q, k, v)]
    state[at + "c_attn.weight"] = np.concatenate(flat, 1)
    state[at + "c_proj.weight"] = (basis @ o.transpose(1, 0, 2).reshape(size, d)).T
    head = np.zeros((vocab, size))
    for j in range(OBJECTS):
        head[thing(j), said + j] = 16 / np.sqrt(d)
    state["lm_head.weight"] = head @ basis.T
    module.load_state_dict({key: torch.tensor(value, dtype=torch.float32) for key, value in state.items()})
    return Memory(CausalLM(module, None, name=f"memory {seed}"), layer, facts)
