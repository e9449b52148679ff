"""The attribution screen of every head, against cutting each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from interp.locate.gradients import metric_of
from interp.locate.screen import Screen, screen
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward


def questions(subject: CausalLM, n: int, length: int) -> list[Example]:
    """Needle prompts whose answer is read at the last position, against a foil; random ids without a tokenizer."""
    if subject.has_tokens:
        import interp

        found = interp.task("niah", length=length, kinds="words", n=4 * n, seed=0).examples(subject)
        first = [
            replace(e, answer_ids=e.answer_ids[:1], foil_ids=e.foil_ids[:1], candidates=()) for e in found
        ]
        return [e for e in first if e.answer_ids != e.foil_ids][:n]
    rng = np.random.default_rng(0)
    ids = rng.integers(subject.config.vocab_size - 1, size=(n, length)).tolist()
    return [Example("random ids", tuple(x), (x[3],), foil_ids=((x[3] + 1),)) for x in ids]


def head_screen(subject: CausalLM, n: int = 16, length: int = 64) -> Job:
    """Attribution screen of all heads: zero ablation at all positions, logit difference at the last position."""
    examples = questions(subject, n, length)
    batch, heads = subject.batch(examples), len(subject.heads())

    def ours() -> Screen:
        return screen(subject, examples, top=0, sample=0)

    def exact() -> Screen:
        return screen(subject, examples, top=heads, sample=0)

    kept: list[Screen] = []

    def checked() -> Screen:
        """All heads verified, once: correlations do not change from round to round."""
        if not kept:
            kept.append(exact())
        return kept[0]

    def equal(found: Results) -> float:
        """Exact effects against plain hooks, on a few heads."""
        frame = checked().frame
        base = metric_of(bare_forward(subject, batch), batch, examples, "logit_diff")
        worst = 0.0
        for at in np.linspace(0, heads - 1, 5).astype(int):
            layer, head = int(frame.layer[at]), int(frame.unit[at])
            width = slice(head * subject.d_head, (head + 1) * subject.d_head)

            def cut(module: object, args: tuple, width: slice = width) -> tuple:
                z = args[0].clone()
                z[..., width] = 0
                return (z,)

            handle = subject.module(layer, subject.family.out_proj).register_forward_pre_hook(cut)
            try:
                changed = metric_of(bare_forward(subject, batch), batch, examples, "logit_diff")
            finally:
                handle.remove()
            worst = max(worst, abs(float((changed - base).mean()) - frame.exact[at]))
        return worst

    def numbers(found: Results) -> dict[str, float]:
        frame = checked().frame
        assert np.allclose(frame.approx, found["ours"].frame.approx, atol=1e-3)
        best = [set(frame[c].abs().nlargest(20).index) for c in ("approx", "exact")]
        return {
            "spearman": float(stats.spearmanr(frame.approx, frame.exact).statistic),
            "pearson": float(stats.pearsonr(frame.approx, frame.exact).statistic),
            "top 20 recall": len(best[0] & best[1]) / len(best[0]),
        }

    return Job(
        f"attribution screen of all {heads} heads, {n} prompts x ~{length} tokens, last logits",
        (
            Reach("at most 2.5 forwards", "ours/bare", "<=", 2.5),
            Reach("Spearman to exact at least 0.8", "spearman", ">=", 0.8),
        ),
        ours=ours,
        bare=lambda: bare_forward(subject, batch),
        equal=equal,
        tolerance=1e-4,
        numbers=numbers,
        warm=lambda: (ours(), bare_forward(subject, batch)),
        notes=(
            f"the peer is one run a head, {heads} bare forwards; exact effects of all heads are computed once by each",
        ),
    )


JOBS: dict[str, Builder] = {"head-screen": head_screen}
