"""In a convolution and attention circuit set by hand, every score of copying finds the heads that retrieve."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.locate.retrieval_heads import THRESHOLD
from interp.models.batch import Batch
from interp.models.engines.base import Record, Rows
from interp.models.sites import Site
from interp.models.zoo.training import accuracy
from interp.tasks.mqar import MQAR
from interp.tasks.symbols import symbols

from .planted import Planted, planted

TOKENS = symbols(128)
COPYING = (
    "copy",
    "copy_position",
    "copy_topk",
    "needle_mass",
    "r2",
    "spatial",
    "temporal",
    "dla",
    "locos",
    "cri",
)
"""Scores of heads that take a value from behind its key. `echo` is of heads that look at the same token, and `qr` at
whatever the question is about, so that a head which finds the key itself has one too."""


def subject(circuit: Planted):
    return interp.load(circuit.module, tokenizer=TOKENS, name="planted")


@pytest.mark.parametrize("seed", range(4))
def test_every_score_ranks_the_planted_heads_first(seed):
    circuit = planted(seed, retrieval=1 + seed % 2)
    heads = interp.RetrievalHeads(scores=(*COPYING, "induction")).fit(
        subject(circuit),
        MQAR(pairs=[8, 16], n=24, seed=seed),
    )
    assert heads.acceptance_ == 1.0
    for score in (*COPYING, "induction"):
        assert set(heads.top(len(circuit.retrieval), score)) == set(circuit.retrieval), score
    copy = heads.scores_[heads.scores_["method"] == "copy"].set_index("component")["score"]
    # Precision and recall 1 at the threshold, with a wide margin on both sides.
    assert set(copy.index[copy >= THRESHOLD]) == {repr(h) for h in circuit.retrieval}
    assert copy[[repr(h) for h in circuit.retrieval]].min() == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_cutting_them_destroys_recall_and_cutting_decoys_does_not(seed):
    circuit = planted(seed, retrieval=1 + seed % 2)
    model = subject(circuit)
    task = MQAR(pairs=[4, 8], n=12, seed=seed)
    batch = model.batch(task.examples(model))
    answers = torch.tensor([e.answer_ids[0] for e in task.examples(model)])
    cuts = [None, interp.ablate(circuit.retrieval), interp.ablate(tuple(circuit.decoys))]
    logits = dict(model.each(cuts, batch, keep=1))
    clean, cut, spared = (float((logits[i][:, -1].argmax(-1) == answers).float().mean()) for i in range(3))
    assert clean == spared == 1.0
    assert cut <= 0.25  # 4 values are in the context


def test_the_pattern_of_a_planted_head_is_on_the_value():
    circuit = planted(0)
    model = subject(circuit)
    examples = MQAR(pairs=8, n=8).examples(model)
    batch = model.batch(examples)
    columns = torch.tensor([[batch.width - 1]] * len(examples))
    rows = model.run(batch, rows=Rows(columns), keep=1).rows[0]
    for row, (example, pad) in enumerate(zip(examples, batch.pad.tolist(), strict=True)):
        (value,) = example.spans_of("value", 0)
        for head in circuit.retrieval:
            assert rows[row, head.head, 0, pad + value.start] > 0.9


def test_convolution_puts_the_token_before_into_its_block():
    circuit = planted(1)
    model = subject(circuit)
    ids = torch.tensor([[5, 9, 70, 3]])
    entering = model.run(Batch.of_ids(ids.tolist()), {Site("resid_pre", 0): Record()}, keep=1)
    stream = entering[Site("resid_pre", 0)][0]
    codes = circuit.module.lm_head.weight[:, 64:96].detach()
    assert torch.allclose(stream[:, :32], codes[ids[0]], atol=1e-5)
    assert torch.allclose(stream[1:, 32:64], codes[ids[0, :-1]], atol=1e-3)
    assert stream[0, 32:64].abs().max() < 1e-3


def test_a_dull_circuit_fails_and_nothing_is_found():
    """The end of the difficulty curve: queries too small to tell codes apart."""
    right = [
        accuracy(planted(0, sharp=sharp).module, *MQAR(pairs=16).batch(np.random.default_rng(1), 32, TOKENS))
        for sharp in (6.0, 0.3, 0.02)
    ]
    assert right[0] == 1.0
    assert right[0] > right[1] > right[2]
    assert right[2] < 0.15
