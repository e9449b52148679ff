"""Claims about edits: what they erase beyond controls at their own dose, what they keep, what an attack gets back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.studies.memorization.audit import NEGATED, ORACLE, ORIGINAL, TUNED
from interp.studies.memorization.cuts import NONE
from interp.studies.memorization.findings import (
    BLIND,
    CHAVHAN,
    COST,
    DAMAGE,
    DORI,
    FEW,
    HOLDS,
    MARGIN,
    MISSING,
    NOT,
    NOTHING,
    OPEN,
    OURS,
    UNSURE,
    Claim,
    Told,
    enough,
    rate,
    unchosen,
    unjudged,
)
from interp.studies.memorization.measures import apart, by_item, less, mean_of

if TYPE_CHECKING:
    from interp.studies.memorization.spec import MemorizationSpec

TRAINED = (NEGATED, TUNED)
_KEEPS = f"needs retention: alignment not lower by {COST:g} and held-out loss not higher by {COST:.0%}, by intervals"
Sides = tuple[pd.Series, pd.Series]
"""Of items of A, and of unseen pictures."""
_SAYS = {"any": "share of pictures got back", "ease": "ease of extraction"}


class _Edit:
    """An edit, the trainings that it is judged over, and what it is compared with.

    Attributes:
        seeds: trainings. gone: those of them in which it erased A. note: of rules. labels: of its controls.
    """

    def __init__(self, told: Told, name: str, spec: MemorizationSpec, wide: pd.DataFrame):
        self.told, self.name, self.wide = told, name, wide
        own = told.items[told.items["edit"] == name]
        self.seeds, self.note = sorted(set(own["seed"])), ""
        if name == TUNED:
            self.seeds, self.note = unchosen(self.seeds, spec.train_seeds[0])
        left = own[own["set"] == "targeted"].groupby("seed")["value"].mean()
        self.left = left[left.index.isin(self.seeds)]
        self.gone = [s for s in self.seeds if s in left.index and left[s] <= spec.erased]
        self.erased = (
            f"A erased (MR at most {spec.erased:g}) in {len(self.gone)} of {len(self.seeds)} trainings"
        )
        picked = told.chosen.loc[told.chosen["edit"] == name, "targeted"]
        if len(picked):
            self.erased += f", {picked.iloc[0]:.2f} of it left where the dose was chosen"
        mine = told.contrasts[told.contrasts["edit"] == name]
        self.labels = [str(label) for label in mine["against"].unique() if label != NONE]

    def draws(self, label: str, names: Iterable[str]) -> list[str]:
        """Of these edits, those that a label stands for: itself, or a control of this edit, drawn once or often."""
        own = re.compile(rf"{re.escape(label)}( \d+)? \({re.escape(self.name)}\)")
        return [name for name in names if name == label or own.fullmatch(name)]

    def less(self, label: str, measure: str, seeds: Sequence[int]) -> pd.Series:
        """Itself less another edit, or the mean of all draws of a control of its own, over items of some trainings."""
        delta = less(self.wide, self.name, self.draws(label, self.wide.columns))
        if delta is None:
            return pd.Series(dtype=float)
        index = delta.index
        kept = index.get_level_values("seed").isin(list(seeds)) & (index.get_level_values("set") == measure)
        return delta[kept]

    def retention(self, seeds: Sequence[int]) -> str:
        """Nothing where it is shown that what is ordinary stays, or else what stands in place of `holds`."""
        verdicts = []
        for measure in ("alignment", "loss"):
            delta = self.less(NONE, measure, seeds)
            if delta.empty:
                verdicts.append(MISSING)
                continue
            verdicts.append(_kept(self, measure, delta).verdict)
        if NOT in verdicts:
            return DAMAGE
        return next((UNSURE[v] for v in (MISSING, FEW, OPEN) if v in verdicts), "")


def _claim(
    finding: str, source: str, statistic: str, delta: pd.Series, measure: str, boundary: float, above: bool, **more: Any
) -> Claim:  # fmt: skip
    """Of paired differences."""
    told = mean_of(measure, delta)
    points = tuple(mean_of(measure, own)["value"] for _, own in delta.groupby("seed"))
    return Claim(
        finding, source, statistic, told["value"], told["ci_lo"], told["ci_hi"], boundary, above, told["n"],
        told["n_seeds"], points=points, **more,
    )  # fmt: skip


def cut(told: Told, spec: MemorizationSpec) -> Iterator[Claim]:
    """Of every edit that was measured."""
    wide = by_item(told.items)
    for name in (*told.judged, *told.others, *TRAINED):
        if name not in wide:
            continue
        edit = _Edit(told, name, spec, wide)
        yield from _erases(edit)
        if name not in TRAINED:
            yield from _shares(edit)
        for measure in ("alignment", "loss"):
            delta = edit.less(NONE, measure, edit.seeds)
            if not delta.empty:
                yield _kept(edit, measure, delta)
        yield from _spares(edit)


def _erases(edit: _Edit) -> Iterator[Claim]:
    """A, beyond what each control takes of it."""
    needs = edit.retention(edit.seeds)
    for label in edit.labels:
        delta = edit.less(label, "targeted", edit.seeds)
        if delta.empty:
            continue
        yield _claim(
            f"{edit.name}: what it was made for is erased beyond its control ({label})",
            CHAVHAN if edit.name not in TRAINED else DORI, f"MR of A, less that under {label}{_doses(edit, label)}",
            delta, "targeted", 0.0, False, refuted=-MARGIN, needs=needs,
            rule=f"interval below 0, the difference in every training; does not: above {-MARGIN:g}; "
            f"{_KEEPS}{edit.note}",
        )  # fmt: skip


def _doses(edit: _Edit, label: str) -> str:
    """Mean doses of an edit and its control."""
    mean = edit.told.edits.groupby("edit")["dose"].mean()
    draws = edit.draws(label, mean.index)
    if edit.name not in mean.index or not draws:
        return ""
    return f" (dose {mean[edit.name]:.3g} against {mean[draws].mean():.3g})"


def _shares(edit: _Edit) -> Iterator[Claim]:
    """B falls, and more than under each control of the edit: by each of them, and by all together."""
    says = f"{edit.name}: held-out memorized items are erased"
    rule = (
        f"interval below 0, the difference in every training; does not: above {-MARGIN:g}; over trainings with A "
        f"erased; {_KEEPS}"
    )
    rows = {label: edit.less(label, "held_out", edit.gone) for label in (NONE, *edit.labels)}
    if edit.less(NONE, "held_out", edit.seeds).empty or not edit.labels:
        return
    if not edit.gone:
        yield unjudged(f"{says} beyond every control", CHAVHAN, edit.erased, NOTHING, rule, len(edit.left))
        return
    retention = edit.retention(edit.gone)
    gates = {"gate": DAMAGE} if retention == DAMAGE else {"needs": retention}
    claims = {
        label: _claim(
            f"{says} beyond its control ({label})" if label != NONE else says, CHAVHAN,
            f"MR of B, less that under {label}; {edit.erased}", delta, "held_out", 0.0, False, refuted=-MARGIN,
            rule=rule, **gates,
        )
        for label, delta in rows.items() if not delta.empty
    }  # fmt: skip
    yield from (claims[label] for label in edit.labels if label in claims and edit.name in edit.told.judged)
    hardest = max(claims.values(), key=lambda c: c.hi)
    verdicts = [c.verdict for c in claims.values()]
    order = (DAMAGE, NOT, FEW, MISSING, OPEN, *UNSURE.values(), HOLDS)
    yield Claim(
        f"{says} beyond every control", CHAVHAN,
        f"MR of B, less that under the control with the highest interval of {', '.join(claims)}; {edit.erased}",
        hardest.value, hardest.lo, hardest.hi, 0.0, False, hardest.n, hardest.n_seeds,
        f"beside each ({', '.join(claims)}): {rule}", gate=next(v for v in order if v in verdicts),
    )  # fmt: skip


def _kept(edit: _Edit, measure: str, delta: pd.Series) -> Claim:
    """That alignment, or the denoising of what is held out, stays."""
    if measure == "alignment":
        return _claim(
            f"{edit.name}: ordinary prompts keep their digits", CHAVHAN, "class alignment, less that before", delta,
            measure, -COST, True, least=enough(COST),
            rule=f"interval above {-COST:g}, the difference in every training; does not: below it{edit.note}",
        )  # fmt: skip
    return _claim(
        f"{edit.name}: held-out pictures are denoised as before", CHAVHAN, "denoising error, over that before", delta,
        measure, 1 + COST, False,
        rule=f"interval below {1 + COST:g}, the ratio in every training; does not: above it{edit.note}",
    )  # fmt: skip


def _spares(edit: _Edit) -> Iterator[Claim]:
    """Other memorized items: those of other kinds and, of edits that are trained on A, B."""
    for measure, text in (("retained", "other"), ("held_out", "held-out")):
        delta = edit.less(NONE, measure, edit.seeds)
        if delta.empty or (measure == "held_out" and edit.name not in TRAINED):
            continue
        yield _claim(
            f"{edit.name}: spares {text} memorized items", OURS, f"MR of {text} memorized items, less that before",
            delta, measure, -MARGIN, True, least=enough(MARGIN),
            rule=f"interval above {-MARGIN:g}, the difference in every training; does not: below it{edit.note}",
        )  # fmt: skip


# -- under attack ------------------------------------------------------------------------------------------------------


def attacked(told: Told, spec: MemorizationSpec) -> Iterator[Claim]:
    """Of every condition but the oracle; then of the oracle, and of the attack itself."""
    wide = by_item(told.items)
    conditions = set(told.attacks["condition"])
    for name in (*told.judged, *told.others, *TRAINED):
        if name in wide and name in conditions:
            edit = _Edit(told, name, spec, wide)
            yield from _survives(edit)
            yield from _harder(edit)
    yield from _tells(told.attacks)


def _searches(
    attacks: pd.DataFrame, measure: str, condition: str, other: str, seeds: Sequence[int]
) -> pd.Series:
    """Of A, one condition less another, item by item, over searches that both had."""
    column = "extracted" if measure == "any" else "ease"
    own = attacks[attacks["group"].eq("targeted") & attacks["condition"].isin([condition, other])]
    own = own[own["seed"].isin(list(seeds))]
    if set(own["condition"]) != {condition, other}:
        return pd.Series(dtype=float)
    each = own.pivot_table(
        index=["seed", "item", "start", "restart"], columns="condition", values=column
    ).dropna()
    by = each.groupby(["seed", "item"])
    found = by.max() if measure == "any" else by.mean()
    return (found[condition] - found[other]).astype(float)


def _unseen(
    attacks: pd.DataFrame, condition: str, seeds: Sequence[int], measure: str = "ease"
) -> tuple[pd.Series, ...]:
    """Of A and of pictures that were never trained on, by training and item.

    Searches count that do not begin at the item's own prompt, whose words A was trained with and the others were not.
    """
    own = attacks[(attacks["condition"] == condition) & (attacks["start"] != "prompt")]
    own = own[own["seed"].isin(list(seeds))]
    sides = []
    for group in ("targeted", "unseen"):
        by = own[own["group"] == group].groupby(["seed", "item"])
        sides.append(by["extracted"].max() if measure == "any" else by["ease"].mean())
    return sides[0], sides[1]


def _beyond(
    finding: str, statistic: str, sides: Sides, boundary: float, above: bool, **more: Any
) -> Claim:  # fmt: skip
    """Of two groups of items."""
    held, new = sides
    means = [side.groupby("seed").mean() for side in sides]
    points = (means[0] - means[1]).dropna()
    return Claim(
        finding, DORI, statistic, float(held.mean() - new.mean()), *apart(held.to_numpy(float), new.to_numpy(float)),
        boundary, above, min(len(held), len(new)), len(points), points=tuple(points), **more,
    )  # fmt: skip


def _power(attacks: pd.DataFrame, measure: str, seeds: Sequence[int]) -> str:
    """Nothing where the attack tells what is held from what is not, or else what stands in place of `holds`."""
    floor = _searches(attacks, measure, ORIGINAL, ORACLE, seeds)
    sides = _unseen(attacks, ORIGINAL, seeds, measure)
    if floor.empty or any(side.empty for side in sides):
        return MISSING
    lows = mean_of(measure, floor)["ci_lo"], apart(*(side.to_numpy(float) for side in sides))[0]
    return "" if min(lows) > MARGIN else BLIND


def _gates(edit: _Edit, measure: str, seeds: Sequence[int]) -> dict[str, str]:
    """What stands in place of the verdict (an attack that cannot tell), or of `holds`."""
    power, retention = _power(edit.told.attacks, measure, seeds), edit.retention(seeds)
    if power == BLIND:
        return {"gate": BLIND}
    return {"needs": retention if retention == DAMAGE else power or retention}


_POWER = (
    "needs an attack that tells: of the original, intervals of what it gets less that of the oracle, and less that of "
    f"unseen pictures, above {MARGIN:g}"
)


def _survives(edit: _Edit) -> Iterator[Claim]:
    """A is as hard to get from the edited model as from the oracle, and as pictures that it was never trained on."""
    attacks = edit.told.attacks
    mine = attacks[attacks["condition"] == edit.name]
    rule = (
        f"interval below {MARGIN:g}, the difference in every training; over trainings with A erased before the attack; "
        f"{_POWER}; {_KEEPS}{edit.note}"
    )
    new = f"{edit.name}: what the attack gets back is no more than what it makes up of pictures never seen"
    names = {m: f"{edit.name}: the deletion survives the attack ({text})" for m, text in _SAYS.items()}
    seeds = [s for s in edit.gone if s in set(mine["seed"])]
    if not seeds:
        gate = NOTHING if not edit.gone else MISSING
        for finding in (*names.values(), new):
            yield unjudged(finding, DORI, edit.erased, gate, rule, len(edit.left))
        return
    for measure, finding in names.items():
        delta = _searches(attacks, measure, edit.name, ORACLE, seeds)
        statistic = f"{_SAYS[measure]}, less that of the oracle; {edit.erased}"
        if delta.empty:
            yield unjudged(finding, DORI, statistic, MISSING, rule)
            continue
        yield _claim(
            finding, DORI, statistic, delta, measure, MARGIN, False, least=enough(MARGIN), rule=rule,
            **_gates(edit, measure, seeds),
        )  # fmt: skip
    sides = _unseen(attacks, edit.name, seeds)
    statistic = f"ease of extraction of A, less that of unseen pictures, starts off the prompt; {edit.erased}"
    if any(side.empty for side in sides):
        yield unjudged(new, DORI, statistic, MISSING, rule)
        return
    yield _beyond(
        new,
        statistic,
        sides,
        MARGIN,
        False,
        least=enough(MARGIN),
        rule=rule,
        **_gates(edit, "ease", seeds),
    )


def _harder(edit: _Edit) -> Iterator[Claim]:
    """Than after a control of the edit, where that was attacked: the same training on other pictures."""
    for label in edit.labels:
        delta = _searches(edit.told.attacks, "ease", edit.name, label, edit.gone)
        if delta.empty:
            continue
        yield _claim(
            f"{edit.name}: A is harder to get back than after {label}", DORI,
            f"ease of extraction, less that after {label}; {edit.erased}", delta, "ease", 0.0, False,
            refuted=-MARGIN,
            needs=edit.retention(edit.gone),
            rule=f"interval below 0, the difference in every training; does not: above {-MARGIN:g}; over "
            f"trainings with A erased before the attack; {_KEEPS}{edit.note}",
        )  # fmt: skip


def _tells(attacks: pd.DataFrame) -> Iterator[Claim]:
    """What the attack gets from an oracle, which is how often it makes pictures up; and whether it tells anything."""
    seeds = sorted(set(attacks["seed"]))
    oracle = attacks[(attacks["group"] == "targeted") & (attacks["condition"] == ORACLE)]
    found = oracle.groupby(["seed", "item"], as_index=False)["extracted"].max()
    finding = "the attack gets nothing from the oracle, which never held the pictures"
    rule = f"upper end of the rate's interval below {MARGIN:g}, the rate in every training"
    if found.empty:
        yield unjudged(finding, OURS, "share of pictures got from the oracle", MISSING, rule)
    else:
        yield rate(found, finding, "share of pictures got from the oracle", rule)
    rule = f"interval above {MARGIN:g}, the difference in every training"
    for measure, text in _SAYS.items():
        delta = _searches(attacks, measure, ORIGINAL, ORACLE, seeds)
        if not delta.empty:
            yield _claim(
                f"the oracle is the floor: a model that holds the pictures gives them up sooner ({text})", OURS,
                f"{text}, original less oracle", delta, measure, MARGIN, True, rule=rule,
            )  # fmt: skip
    new = attacks[(attacks["group"] == "unseen") & (attacks["condition"] == ORIGINAL)]
    if len(new):
        made_up = new.groupby(["seed", "item"], as_index=False)["extracted"].max()
        finding = "the attack gets nothing that the model never saw"
        rule = f"upper end of the rate's interval below {MARGIN:g}, the rate in every training"
        yield rate(made_up, finding, "share of unseen pictures got from the original", rule)
    rule = f"interval above {MARGIN:g}, the difference in every training"
    sides = _unseen(attacks, ORIGINAL, seeds)
    if not any(side.empty for side in sides):
        yield _beyond(
            "the attack tells what the model holds from what it never saw",
            "ease of extraction of A, less that of unseen pictures, starts off the prompt",
            sides, MARGIN, True, rule=rule,
        )  # fmt: skip
