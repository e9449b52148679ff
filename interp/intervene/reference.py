"""Reference activations for mean and resample ablation: which data, and how it is pooled.

The choice of reference changes the effect, so it has a name that goes into every key and row: the data, and whether
values are pooled over all tokens, by position, or by span role (`mean`), drawn from a bank of tokens, or taken from
the example's own corrupt twin (`resample`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from interp.errors import UsageError
from interp.models.batch import Batch, plan
from interp.models.engines.base import Frame, Record, Reduce
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

Pool = Literal["pooled", "position", "role", "twin"]
OTHER = "other"
KEPT_TWINS = 8
"""Twins whose activations are kept."""

BANK = 256
"""Tokens in the bank that pooled resampling draws from."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Where replaced values come from.

    Args:
        source: a task or examples; None for `twin`, whose source is each example's own corruption.
        pool: `pooled`, `position` or `role` (mean); `pooled` or `twin` (resample).
        twin: kind of corruption, for `twin`; default the first that the example has.
        n: use at most so many examples of the source.
    """

    source: Task | Sequence[Example] | None
    pool: Pool = "pooled"
    twin: str | None = None
    n: int = 32
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.source is None) != (self.pool == "twin"):
            raise UsageError("a reference needs data (a task or examples), or pool='twin' without data")

    @property
    def name(self) -> str:
        """What rows and keys say."""
        if self.source is None:
            return f"twin:{self.twin or 'first'}"
        if isinstance(self.source, Task):
            return f"{self.source!r}[:{self.n}], {self.pool}"
        digest = hashlib.sha256("".join(e.key() for e in self.source[: self.n]).encode()).hexdigest()[:8]
        return f"{len(self.source[: self.n])} examples {digest}, {self.pool}"

    def examples(self, subject: CausalLM) -> list[Example]:
        """The reference examples."""
        if self.source is None:
            raise UsageError("a twin reference has no examples of its own")
        every = self.source.examples(subject) if isinstance(self.source, Task) else self.source
        return list(every)[: self.n]

    def means(self, subject: CausalLM, kind: str) -> dict[str, torch.Tensor]:
        """Mean activation at `kind` of every layer, by token class; each tensor is (layers, *unit shape), fp32.

        Token classes: one (`""`) when pooled, the position or the role otherwise. One pass over the examples gives
        all layers; each layer's sums are made in fp32 on its own device and kept on the CPU.
        """
        return self._kept(("means", kind), subject, lambda: self._means(subject, kind))

    def _kept(self, key: tuple[Any, ...], subject: CausalLM, make: Any) -> Any:
        full = (*key, subject.weights_hash)
        if full not in self._cache:
            # The reference is the intact model's, also while an intervention is applied.
            before, subject._edits = subject._edits, ()
            try:
                self._cache[full] = make()
            finally:
                subject._edits = before
        return self._cache[full]

    def classes(self, example: Example, n: int) -> list[str]:
        """Token class of the first `n` tokens of prompt and answer."""
        if self.pool == "pooled":
            return [""] * n
        if self.pool == "position":
            return [str(i) for i in range(n)]
        out = [OTHER] * n
        for span in sorted(example.spans, key=len, reverse=True):  # the innermost span names the token
            for i in range(span.start, min(span.end, n)):
                out[i] = span.role
        return out

    def _means(self, subject: CausalLM, kind: str) -> dict[str, torch.Tensor]:
        examples = self.examples(subject)
        names = sorted({c for e in examples for c in self.classes(e, len(e.full_ids) - 1)})
        at = {name: i for i, name in enumerate(names)}
        counts = torch.zeros(len(names))
        sums: dict[int, torch.Tensor] = {}
        for group in plan([len(e.full_ids) for e in examples], 4096):
            chosen = [examples[i] for i in group]
            batch = subject.batch(chosen)
            real = batch.mask.bool()
            index = torch.tensor([at[c] for e in chosen for c in self.classes(e, len(e.full_ids) - 1)])
            counts += torch.bincount(index, minlength=len(names))

            def add(
                value: torch.Tensor,
                frame: Frame,
                real: torch.Tensor = real,
                index: torch.Tensor = index,
            ) -> torch.Tensor:
                tokens = value[real.to(value.device)].float()
                out = tokens.new_zeros(len(names), *tokens.shape[1:])
                return out.index_add_(0, index.to(value.device), tokens)

            taps = {Site(kind, i): Reduce(add) for i in range(subject.n_layers)}
            trace = subject.run(batch, taps, keep=1)
            for i in range(subject.n_layers):
                found = trace[Site(kind, i)].cpu()
                sums[i] = sums[i] + found if i in sums else found
        stacked = torch.stack([sums[i] for i in range(subject.n_layers)])
        return {name: stacked[:, c] / counts[c] for name, c in at.items()}

    def bank(self, subject: CausalLM, kind: str) -> torch.Tensor:
        """Activations at `kind` of tokens drawn at random from the reference, (layers, bank, *unit shape)."""
        return self._kept(("bank", kind), subject, lambda: self._bank(subject, kind))

    def _bank(self, subject: CausalLM, kind: str) -> torch.Tensor:
        examples = self.examples(subject)
        per = -(-BANK // len(examples))
        parts = []
        for example in examples:
            rng = np.random.default_rng(stable_seed("bank", example.key()))
            n = len(example.full_ids) - 1
            columns = torch.from_numpy(rng.choice(n, size=min(per, n), replace=False))[None]
            taps = {Site(kind, i): Record(columns) for i in range(subject.n_layers)}
            trace = subject.run([example], taps, keep=1)
            parts.append(
                torch.stack([trace[Site(kind, i)][0].float().cpu() for i in range(subject.n_layers)])
            )
        return torch.cat(parts, dim=1)

    def twins(self, subject: CausalLM, example: Example, kind: str, kept: int = KEPT_TWINS) -> torch.Tensor:
        """Activations of an example's corrupt twin, its own clean answer forced, (layers, tokens, *unit shape).

        The last twins of a kind are kept, `KEPT_TWINS` or more (`kept`): conditions of one batch share them.
        """
        if not example.corrupt:
            raise UsageError(
                f"{example.task}: resample from the twin needs examples with a corruption; this has none"
            )
        name = self.twin or next(iter(example.corrupt))
        if name not in example.corrupt:
            raise UsageError(f"{example.task}: no corruption '{name}'; it has {', '.join(example.corrupt)}")

        twin = example.corrupt[name]

        def make() -> torch.Tensor:
            # The twin's prompt with the clean answer, so that every token has its counterpart.
            ids = [*twin.ids, *example.answer_ids[:-1]]
            batch = Batch.of_ids([ids], device=subject.device)
            trace = subject.run(batch, {Site(kind, i): Record() for i in range(subject.n_layers)}, keep=1)
            return torch.stack([trace[Site(kind, i)][0].float().cpu() for i in range(subject.n_layers)])

        found: torch.Tensor = self._kept(("twin", kind, example.key(), twin.ids), subject, make)
        held = [key for key in self._cache if key[:2] == ("twin", kind)]
        for key in held[: -max(kept, KEPT_TWINS)]:
            del self._cache[key]
        return found
