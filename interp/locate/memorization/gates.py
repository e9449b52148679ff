"""Gates that are learned: the fewest units that still hold the items.

One gate a unit, all layers at once. The objective of the items is held down while a price presses every gate shut, so
units that share a memory are weighed together, where closing them one by one shows little. What stays open is enough to
hold the items; of units that can stand in for each other it may be some. Two ways: `slimming`, gates in [0, 1] under an
L1 price (Liu et al. 2017), and `hard_concrete`, random gates that are 0 or 1 with positive probability (Louizos et al.
2018), both as used on language models by Chang et al. 2024 (arXiv 2311.09060).

The price has one scale for all subjects: with `price=1` all open gates together cost what the objective rises by when
they are all shut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.memorization.gating import frozen, gated, open_gates, together
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import loss
from interp.models.cache import Progress
from interp.models.parts import Part
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Rule = Literal["hard_concrete", "slimming"]
RULES: tuple[Rule, ...] = get_args(Rule)
Per = Literal["set", "item"]

LOW, HIGH = -0.1, 1.1
"""What a hard-concrete gate is stretched to before it is cut to [0, 1]."""
BETA = 0.5
"""Its temperature."""


class LearnedGates(UnitLocator[Sequence[Any]]):
    """How open a unit's gate is left when every open gate has its price.

    Args:
        rule: `hard_concrete` or `slimming`.
        per: `set`, one gate a unit that all items share; or `item`, each item its own, learned side by side.
        price: of all gates being open, in rises of the objective when all are shut.
        steps, rate: of Adam.
        kind: of the parts, see `interp.models.parts.parts`.
        draws: of (t, eps) in a pipeline, new ones at each step. seed: of all draws.

    After `fit(subject, items, reference=others)` (see `UnitLocator`): scores_ has the method of the rule's name, the
    opening in 0 to 1 (of the reference items, learned for themselves, it is taken off); and
        history_: of each step the mean objective of the target items and the mean opening.

    Raises:
        UsageError: no such rule, or a price, rate or number of steps that is not positive.
    """

    def __init__(
        self,
        rule: Rule = "hard_concrete",
        per: Per = "set",
        price: float = 3.0,
        steps: int = 150,
        rate: float = 0.1,
        kind: str = "ff_out",
        draws: int = 8,
        seed: int = 0,
    ):
        self.rule = rule
        self.per = per
        self.price = price
        self.steps = steps
        self.rate = rate
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if self.rule not in RULES or self.per not in get_args(Per):
            raise UsageError(
                f"rule={self.rule!r}, per={self.per!r}: write one of {', '.join(RULES)}, and 'set' or 'item'"
            )
        if not (self.price > 0 and self.rate > 0 and self.steps > 0):
            raise UsageError(f"price={self.price}, rate={self.rate}, steps={self.steps}: each is above 0")

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        histories: list[list[tuple[float, float]]] = [[] for _ in sides]
        found = [self._openings(*own, progress) for own in zip(sides, histories, strict=True)]
        self.history_ = histories[0]
        self.scores_ = unit_table(self.rule, *found)

    def _openings(
        self, items: Sequence[Any], history: list[tuple[float, float]], progress: Progress
    ) -> dict[Part, Float[torch.Tensor, "g units"]]:
        """Openings of the gates; `history` is written to."""
        subject = self.subject_
        rows = len(items) if self.per == "item" else 1
        entropy = stable_seed("gates", self.seed, self.rule)
        generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
        gates = _RULES[self.rule](open_gates(subject, self.parts_, rows), generator)
        units = sum(g.shape[1] for g in gates.values.values())
        price = self._price(subject, items, units)
        optimizer = torch.optim.Adam(list(gates.values.values()), lr=self.rate)
        size = together(subject, items, self.draws)
        with frozen(subject):
            for step in range(self.steps):
                optimizer.zero_grad()
                total = 0.0
                for at in range(0, len(items), size):
                    some = items[at : at + size]
                    drawn = gates.drawn(len(items), at, at + len(some))
                    with gated(subject, drawn):
                        losses = loss(subject, some, draws=self.draws, seed=self.seed + step)
                    # Items with gates of their own do not share them: each has the whole price to pay.
                    (losses.sum() / (1 if self.per == "item" else len(items))).backward()
                    total += float(losses.detach().sum()) / len(items)
                opening = torch.stack([o.sum(1) for o in gates.opening().values()]).sum(0)
                (price * opening).sum().backward()
                optimizer.step()
                gates.clamp()
                history.append((total, float(opening.detach().mean()) / units))
                progress(step + 1, self.steps, self.rule)
        return {part: o.detach() for part, o in gates.opening().items()}

    def _price(
        self, subject: CausalLM | Pipeline, items: Sequence[Any], units: int
    ) -> Float[torch.Tensor, " g"]:
        """What one open gate costs, of each item where it has its own."""
        with torch.no_grad():
            intact = loss(subject, items, draws=self.draws, seed=self.seed)
            shut = {p: 0 * g for p, g in open_gates(subject, self.parts_, len(items)).items()}
            with gated(subject, shut):
                rise = loss(subject, items, draws=self.draws, seed=self.seed) - intact
        if self.per == "set":
            rise = rise.mean(0, keepdim=True)
        if bool((rise <= 0).any()):
            raise UsageError(
                f"shutting all gates of {self.kind} makes the items no less likely, so nothing there holds them; "
                "take another kind of part"
            )
        return self.price * rise / units


class _Slimming:
    """Gates that are numbers in [0, 1]."""

    def __init__(self, start: dict[Part, torch.Tensor], generator: torch.Generator):
        self.values = {part: values.requires_grad_() for part, values in start.items()}

    def drawn(self, items: int, at: int, to: int) -> dict[Part, Float[torch.Tensor, "items units"]]:
        """The gates of items `at` to `to`."""
        return {p: v[at:to] if len(v) == items > 1 else v.expand(to - at, -1) for p, v in self.values.items()}

    def opening(self) -> dict[Part, Float[torch.Tensor, "g units"]]:
        """What has a price."""
        return self.values

    def clamp(self) -> None:
        with torch.no_grad():
            for values in self.values.values():
                values.clamp_(0, 1)


class _HardConcrete:
    """Gates clip(s (HIGH - LOW) + LOW, 0, 1), s = sigmoid((log u - log(1 - u) + alpha) / BETA), u uniform."""

    START = 2.0
    """Of alpha: nearly all gates are open at first."""

    def __init__(self, start: dict[Part, torch.Tensor], generator: torch.Generator):
        self.values = {part: (values * self.START).requires_grad_() for part, values in start.items()}
        self.generator = generator

    def drawn(self, items: int, at: int, to: int) -> dict[Part, Float[torch.Tensor, "items units"]]:
        out = {}
        for part, alpha in self.values.items():
            own = alpha[at:to] if len(alpha) == items > 1 else alpha.expand(to - at, -1)
            u = torch.rand(own.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6).to(own.device)
            s = ((u.log() - (1 - u).log() + own) / BETA).sigmoid()
            out[part] = (s * (HIGH - LOW) + LOW).clamp(0, 1)
        return out

    def opening(self) -> dict[Part, Float[torch.Tensor, "g units"]]:
        """The probability that a gate is not shut."""
        shift = BETA * math.log(-LOW / HIGH)
        return {part: (alpha - shift).sigmoid() for part, alpha in self.values.items()}

    def clamp(self) -> None:
        """Alpha has no bounds."""


_RULES: dict[str, Any] = {"slimming": _Slimming, "hard_concrete": _HardConcrete}
