"""The smallest job: one site of one layer, recorded."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward
from tests.benchmarks.jobs_sweep import prose
from tests.benchmarks.peers import Peer, peers

PASSES = 5
"""Passes of one call: a difference of two per cent shows only over several."""


def record(subject: CausalLM, n: int = 4, length: int = 60) -> Job:
    """Record one site in one layer."""
    batch = Batch.of_ids([e.ids for e in prose(subject, n, length, 1)], device=subject.device)
    layer = subject.n_layers // 2
    site = Site("resid_post", layer)
    tools = peers(subject)

    def ours() -> torch.Tensor:
        for _ in range(PASSES):
            kept = subject.run(batch, {site: Record()}, keep=1)[site]
        return kept

    def bare() -> None:
        for _ in range(PASSES):
            bare_forward(subject, batch)

    def loop(peer: Peer) -> torch.Tensor:
        for _ in range(PASSES):
            kept = peer.read(batch, layer)
        return kept

    def equal(found: Results) -> float:
        return float((found["ours"] - found["torch hooks"]).abs().max())

    calls: dict[str, Any] = {name: partial(loop, peer) for name, peer in tools.items()}
    return Job(
        f"record one site in one layer, {n} prompts x {length} tokens",
        (Reach("at most 1.02 of a bare forward", "ours/bare", "<=", 1.02),),
        ours=ours,
        bare=bare,
        peers=calls,
        units=dict.fromkeys(("ours", "bare", *calls), PASSES),
        equal=equal,
        tolerance=0.0,
        notes=(f"each call is {PASSES} passes",),
    )


JOBS: dict[str, Builder] = {"record": record}
