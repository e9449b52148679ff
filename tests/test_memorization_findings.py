"""Rules of the study of memorization, on tables whose truth is known: intervals, gates, and what each claim needs."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.errors import UsageError
from interp.studies.memorization import findings as judge
from interp.studies.memorization.audit import NEGATED, ORACLE, ORIGINAL, TUNED
from interp.studies.memorization.cuts import NONE, REFERENCE
from interp.studies.memorization.findings import (
    BLIND,
    BOTH,
    DAMAGE,
    FEW,
    HOLDS,
    MISSING,
    NOT,
    NOTHING,
    OPEN,
    UNSURE,
    Claim,
    Told,
    enough,
    findings,
)
from interp.studies.memorization.measures import against, apart, between, unseen_share
from interp.studies.memorization.spec import MemorizationSpec

# -- intervals ---------------------------------------------------------------------------------------------------------


def whole(gains: int, losses: int, n: int) -> np.ndarray:
    """Paired differences of 0/1 outcomes."""
    return np.array([1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses))


def test_items_that_are_all_alike_have_an_interval() -> None:
    bound = 1 - 0.025 ** (1 / 30)
    assert unseen_share(30) == pytest.approx(bound) and bound == pytest.approx(0.11570, abs=1e-5)
    assert between(whole(0, 0, 30)) == pytest.approx((-bound, bound))
    assert between(whole(0, 30, 30)) == pytest.approx((-1.0, 2 * bound - 1))
    assert between(np.full(10, 0.5)) == pytest.approx((0.5 - unseen_share(10), 0.5 + unseen_share(10)))
    # Ten items are ten trials, of which five: 0.18709 to 0.81291, and none: to 0.30850, tied by 1/3.
    assert between(whole(0, 5, 10)) == pytest.approx((-0.81291, 0.00739), abs=1e-5)
    # Sixty that change alike are four times as many, of which half: to 0.56500.
    assert between(np.full(60, 0.5))[1] == pytest.approx(0.56500, abs=1e-5)
    assert apart(np.zeros(30), np.zeros(30)) == pytest.approx((-bound, bound))
    assert all(np.isnan(between(np.zeros(0)))) and all(np.isnan(apart(np.zeros(0), np.zeros(3))))


@pytest.mark.parametrize("n", [6, 10, 23, 40])
def test_one_changed_item_never_narrows_and_a_worse_deletion_never_holds_sooner(n: int) -> None:
    found = {(b, c): between(whole(b, c, n)) for b in range(n + 1) for c in range(n + 1 - b)}
    still = found[0, 0][1] - found[0, 0][0]
    for b, c in ((1, 0), (0, 1)):
        assert found[b, c][1] - found[b, c][0] > still
    assert between(np.array([0.05] + [0.0] * (n - 1)))[1] > found[0, 0][1]
    assert found[1, n - 1][1] - found[1, n - 1][0] > found[0, n][1] - found[0, n][0]
    for (b, c), (low, high) in found.items():
        # One more item that came back, or one fewer that went: neither end may fall.
        for other in ((b + 1, c), (b, c - 1)):
            if other in found:
                assert found[other][0] > low - 1e-12 and found[other][1] > high - 1e-12
        # Where a perfect deletion holds, one that is lost here and there holds, too, and the other way round.
        assert (high < judge.MARGIN) <= (still / 2 < judge.MARGIN or c > 0)


RATES = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]


@pytest.mark.parametrize("n", [6, 7, 10, 15, 23, 30])
def test_paired_shares_are_covered(n: int) -> None:
    """Exactly, by the probabilities of all outcomes."""
    cells = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    ends = [between(whole(b, c, n)) for b, c in cells]
    ways = [comb(n, b) * comb(n - b, c) for b, c in cells]
    for p in RATES:
        for q in (r for r in RATES if p + r <= 1):
            held = sum(
                w * p**b * q**c * max(0.0, 1 - p - q) ** (n - b - c)
                for (b, c), (low, high), w in zip(cells, ends, ways, strict=True)
                if low - 1e-9 <= p - q <= high + 1e-9
            )
            assert held >= 0.945, (p, q)


def drawn(n: int, times: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray, float]]:
    """Differences of shares of samples: of items that are alike or not, of rare changes among small ones."""
    out = []
    for kind in (0.1, 0.5, 3.0):
        for before, after in ((0.05, 0.05), (0.3, 0.3), (0.7, 0.1), (0.9, 0.95)):
            rates = [rng.beta(kind * m, kind * (1 - m), (times, n)) for m in (before, after)]
            shares = rng.binomial(4, rates[1]) / 4 - rng.binomial(12, rates[0]) / 12
            out.append((f"shares {kind} {before} {after}", shares, after - before))
    for rare in (0.05, 0.1, 0.2):
        some = rng.random((times, n)) < rare
        small = np.clip(rng.normal(0, 0.1, (times, n)), -0.5, 0.5)
        out.append((f"rare {rare}", np.where(some, 1.0, small), rare))
        out.append((f"rare and constant {rare}", np.where(some, -1.0, 0.02), 0.02 * (1 - rare) - rare))
    return out


@pytest.mark.parametrize("n", [6, 10, 20, 30, 60])
def test_shares_of_samples_are_covered(n: int) -> None:
    for name, rows, truth in drawn(n, 500, np.random.default_rng(n)):
        ends = np.array([between(row) for row in rows])
        held = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
        assert held >= 0.93, name
        least = unseen_share(n)
        assert (ends[:, 1] - rows.mean(1) >= np.minimum(least, 1 - rows.mean(1)) - 1e-9).all()


@pytest.mark.parametrize("n", [6, 10, 30])
def test_groups_of_items_are_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    for kind in (0.2, 3.0):
        for a, b in ((0.02, 0.02), (0.1, 0.1), (0.5, 0.5), (0.9, 0.2), (0.95, 0.98)):
            sides = [rng.beta(kind * m, kind * (1 - m), (600, n)).round(2) for m in (a, b)]
            truth = float(np.mean(sides[0]) - np.mean(sides[1]))
            ends = np.array([apart(x, y) for x, y in zip(*sides, strict=True)])
            assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() >= 0.93, (kind, a, b)


def test_items_that_scatter_less_are_more_trials() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(0, 0.2, 30).clip(-1, 1)
    low, high = between(small)
    assert high - low < 0.26  # as so many whole gains and losses of the same mean: 0.36
    assert between(np.array([0.0] * 29 + [0.25]))[1] > between(np.zeros(30))[1]


# -- differences -------------------------------------------------------------------------------------------------------


def edited(seeds: tuple[int, ...] = (0,), **by_edit: dict[str, list[float]]) -> pd.DataFrame:
    """Rows of `edit_items`: by edit ("_" for " "), by set, the values of its items."""
    rows = [
        {"seed": seed, "edit": edit.replace("_", " "), "set": name, "item": f"{name}-{i}", "value": v}
        for seed in seeds
        for edit, sets in by_edit.items()
        for name, values in sets.items()
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def sets(**values: float | list[float]) -> dict[str, list[float]]:
    """Ten items of each set."""
    return {name: v if isinstance(v, list) else [v] * 10 for name, v in values.items()}


def test_differences_are_paired_by_item_and_training() -> None:
    items = edited(none=sets(held_out=1.0), cut=sets(held_out=[0.0] * 5 + [1.0] * 5))
    items = pd.concat([items, items.assign(seed=1, value=1.0)])
    found = against(items, {"cut": {"none": ["none"], "absent": ["absent"]}}).set_index("seed")
    assert found["value"].to_dict() == {-1: -0.25, 0: -0.5, 1: 0.0}
    assert found["n"].to_dict() == {-1: 20, 0: 10, 1: 10} and found.loc[-1, "n_seeds"] == 2
    assert (found["against"] == "none").all()
    ends = between(np.array([-1.0] * 5 + [0.0] * 15))
    assert (found.loc[-1, "ci_lo"], found.loc[-1, "ci_hi"]) == ends
    assert found.loc[0, "p"] == pytest.approx(2 / 2**5) and found.loc[1, "p"] == 1.0
    old = against(items, {"cut": ["none"]}).set_index("seed")
    pd.testing.assert_frame_equal(old, found)


def test_draws_are_taken_together_item_by_item() -> None:
    items = edited(
        cut=sets(targeted=0.0), draw_0=sets(targeted=[1.0] * 5 + [0.0] * 5), draw_1=sets(targeted=1.0)
    )
    found = against(items, {"cut": {"random": ["draw 0", "draw 1"]}})
    assert found["value"].tolist() == [-0.75, -0.75]
    assert found["ci_hi"].iloc[0] == between(np.array([-1.0] * 5 + [-0.5] * 5))[1]


def test_errors_are_compared_as_ratios() -> None:
    items = edited(none=sets(loss=[1.0, 4.0] * 5), cut=sets(loss=[1.1, 4.8] * 5))
    row = against(items, {"cut": ["none"]}).iloc[0]
    assert (
        row["value"] == pytest.approx(np.sqrt(1.1 * 1.2)) and row["ci_lo"] < row["value"] < row["ci_hi"] < 1.2
    )


def test_nothing_in_common_is_refused() -> None:
    apart_ = pd.concat([edited(none=sets(loss=1.0)), edited((1,), cut=sets(loss=1.0))])
    with pytest.raises(UsageError, match="nothing can be judged"):
        against(apart_, {"cut": ["none"]})
    assert against(edited(none=sets(loss=1.0)), {"cut": ["none"]}).empty


# -- one claim ---------------------------------------------------------------------------------------------------------


def claim(**changes: Any) -> str:
    told = {"value": -0.5, "lo": -0.7, "hi": -0.3, "boundary": 0.0, "above": False, "n": 10, "n_seeds": 1}
    return Claim("f", "s", "t", **{**told, "rule": "", **changes}).verdict


def test_verdicts() -> None:
    assert claim() == HOLDS and claim(above=True) == NOT and claim(hi=0.0) == OPEN
    assert claim(points=(-0.4, -0.6)) == HOLDS and claim(points=(-1.0, 0.0)) == OPEN
    assert claim(n=judge.LEAST - 1) == FEW and claim(least=11) == FEW and claim(least=11, above=True) == NOT
    assert claim(gate=NOTHING) == NOTHING and claim(needs=DAMAGE) == DAMAGE
    assert claim(needs=DAMAGE, above=True) == NOT and claim(needs=BLIND, hi=0.1) == OPEN
    assert claim(hi=0.1, lo=-0.1, refuted=-0.15) == NOT and claim(hi=0.1, lo=-0.2, refuted=-0.15) == OPEN
    assert claim(n=0, gate=MISSING) == MISSING and claim(lo=np.nan, hi=np.nan) == OPEN
    with pytest.raises(UsageError, match="over no items is refused"):
        claim(n=0, gate=NOTHING)


def test_so_many_items_can_show_that_nothing_differs() -> None:
    for margin, n in ((0.15, 23), (0.1, 36)):
        assert enough(margin) == n and unseen_share(n) < margin <= unseen_share(n - 1)


# -- the study's tables ------------------------------------------------------------------------------------------------

SEEDS = (0, 1, 2)
SPEC = MemorizationSpec.model_validate({"train_seeds": SEEDS})
KINDS = ("random 0", "random 1", "random 2", "magnitude", "ordinary", "words")
INTACT = {"targeted": 1.0, "held_out": 1.0, "retained": 1.0, "alignment": 1.0, "loss": 1.0}
STARTS = ("prompt", "normal")


def of_edits(seeds: tuple[int, ...] = SEEDS, /, **by_edit: dict[str, float]) -> pd.DataFrame:
    """An edit of the published rule and its controls, which change nothing unless it is said; "__" for " (...)"."""
    own = REFERENCE.replace(" ", "_")
    every: dict[str, dict[str, float]] = {NONE: {}, own: {"targeted": 0.0}}
    every |= {f"{kind} ({REFERENCE})".replace(" ", "_"): {} for kind in KINDS}
    every |= {name.replace("__", f"_({REFERENCE})").replace(" ", "_"): v for name, v in by_edit.items()}
    size = {"alignment": 30, "loss": 20}
    return edited(
        seeds,
        **{
            e: {s: [v] * size.get(s, 10) for s, v in {**INTACT, **values}.items()}
            for e, values in every.items()
        },
    )


PAIRS = {
    REFERENCE: {
        NONE: [NONE],
        "random": [f"random {i} ({REFERENCE})" for i in range(3)],
        **{k: [f"{k} ({REFERENCE})"] for k in ("magnitude", "ordinary", "words")},
    },
    TUNED: {NONE: [NONE], "tuned on unseen": ["tuned on unseen"]},
    NEGATED: {NONE: [NONE]},
}


def of_attacks(
    seeds: tuple[int, ...] = SEEDS, n: int = 10, **ease: dict[str, float] | float | None
) -> pd.DataFrame:
    """Searches; of a condition ("_" for " ") the ease of A, and of unseen pictures, 0 where nothing is said."""
    told: dict[str, dict[str, float] | float | None]
    told = {"original": {"targeted": 0.9}, "oracle": 0.0, "wanda_reference": 0.0, **ease}
    rows = [
        {"seed": seed, "condition": c.replace("_", " "), "group": group, "item": f"{group}-{i}", "start": start,
         "restart": 0, "ease": value, "extracted": float(value > 0)}
        for seed in seeds for c, v in told.items() if v is not None
        for group, value in ({"targeted": 0.0, "unseen": 0.0} | (v if isinstance(v, dict) else {"targeted": v})).items()
        for start in STARTS for i in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def of_samples(seeds: tuple[int, ...] = SEEDS, model: float = 1.0, oracle: float = 0.0) -> pd.DataFrame:
    rows = [
        {"seed": s, "role": r, "guidance": 1.0, "group": g, "item": f"{g}{i}", "extracted": v}
        for s in seeds for r, g, v in (("model", "memorized", model), ("model", "control", 0.0),
                                       ("oracle", "memorized", oracle), ("oracle", "control", 0.0))
        for i in range(20)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def of_overlap(model: list[float], oracle: list[float], dealt: str = "by digit") -> pd.DataFrame:
    """Rows by the p of each training; the value is below the deals where p is 1."""
    rows = [
        {"seed": s, "role": role, "method": "wanda", "share": 0.1, "statistic": "excess", "dealt": dealt, "p": p,
         "value": -0.2 if p == 1 else 0.2 if p < 0.05 else 0.0, "lo": -0.1, "hi": 0.1, "n_items": 30}
        for role, ps in (("model", model), ("oracle", oracle)) for s, p in enumerate(ps)
    ]  # fmt: skip
    columns = ["seed", "role", "method", "share", "statistic", "dealt", "p", "value", "lo", "hi", "n_items"]
    return pd.DataFrame(rows, columns=columns)


def told(
    items: pd.DataFrame | None = None, attacks: pd.DataFrame | None = None, **changes: pd.DataFrame
) -> Told:
    items = of_edits() if items is None else items
    tables = {
        "samples": of_samples(), "overlap": of_overlap([0.01] * 3, [0.5] * 3),
        "attacks": of_attacks() if attacks is None else attacks,
        "detection": pd.DataFrame(columns=["role", "signal", "against", "seed"]),
        "copying": pd.DataFrame(columns=["seed", "set", "c_t", "n", "extracted"]),
        "chosen": pd.DataFrame({"edit": [REFERENCE], "targeted": [0.05]}),
        "edits": pd.DataFrame({"edit": [REFERENCE, f"ordinary ({REFERENCE})"], "dose": [0.1, 0.2]}),
    }  # fmt: skip
    every = {**tables, **changes}
    known = set(items["edit"])
    compared = pd.DataFrame(
        [
            {"edit": e, "against": k}
            for e, own in PAIRS.items()
            for k, names in own.items()
            if known & {*names}
        ]
    )
    return Told(items=items, contrasts=compared, judged=[REFERENCE], others=["nemo"], **every)


def rows(*args: Any, spec: MemorizationSpec = SPEC, **changes: Any) -> pd.DataFrame:
    return findings(told(*args, **changes), spec=spec).set_index("finding")


def verdict(found: pd.DataFrame, name: str) -> str:
    (one,) = [i for i in found.index if name in i]
    return str(found.loc[one, "verdict"])


SHARED = "are erased beyond every control"
SURVIVES = f"{REFERENCE}: the deletion survives the attack (ease"
UNSEEN = f"{REFERENCE}: what the attack gets back"


def test_a_perfect_deletion_that_spares_the_rest() -> None:
    found = rows()
    for label in ("random", "magnitude", "ordinary", "words"):
        assert verdict(found, f"made for is erased beyond its control ({label})") == HOLDS
        assert verdict(found, f"items are erased beyond its control ({label})") == NOT
    assert verdict(found, SHARED) == NOT and verdict(found, "spares other memorized items") == HOLDS
    assert verdict(found, "keep their digits") == verdict(found, "denoised as before") == HOLDS
    assert (
        verdict(found, SURVIVES)
        == verdict(found, f"{REFERENCE}: the deletion survives the attack (share")
        == HOLDS
    )
    assert verdict(found, UNSEEN) == verdict(found, "gets nothing from the oracle") == HOLDS
    assert verdict(found, "floor: a model that holds the pictures gives them up sooner (ease") == HOLDS
    assert verdict(found, "attack tells what the model holds") == HOLDS
    assert (found["n_seeds"] > 0).eq(found["verdict"] != MISSING).all()
    assert "dose 0.1 against 0.2" in " ".join(found["statistic"])
    columns = "source statistic value ci_lo ci_hi verdict rule n n_seeds"
    assert found.columns.tolist() == columns.split()
    assert found.index.is_unique
    for name, least in ((SURVIVES, 23), (SHARED, 6), ("keep their digits", 36), ("nothing from", 23)):
        rule = found.loc[[name in i for i in found.index], "rule"].item()
        assert rule.endswith(f"over items of these trainings, {least} at least")


def test_sharing_is_a_fall_beyond_every_control() -> None:
    gone = {"targeted": 0.0, "held_out": 0.2}
    found = rows(of_edits(wanda_reference=gone))
    assert verdict(found, SHARED) == HOLDS and "A erased (MR at most 0.1) in 3 of 3 trainings" in str(
        found["statistic"].to_list()
    )
    # One control under which B falls as well is enough, be it one of three draws or all of a kind.
    also = rows(of_edits(wanda_reference=gone, ordinary__={"held_out": 0.2}))
    assert verdict(also, SHARED) == verdict(also, "items are erased beyond its control (ordinary)") == NOT
    assert verdict(also, "items are erased beyond its control (words)") == HOLDS
    assert also.loc[f"{REFERENCE}: held-out memorized items {SHARED}", "value"] == 0  # beside the hardest
    draw = rows(of_edits(wanda_reference=gone, **{"random 0__": {"held_out": 0.2}}))
    row = draw.loc[f"{REFERENCE}: held-out memorized items are erased beyond its control (random)"]
    assert row["value"] == pytest.approx(-0.8 * 2 / 3)
    assert verdict(draw, SHARED) == HOLDS


def test_a_training_that_shows_nothing_leaves_sharing_undecided() -> None:
    gone = {"targeted": 0.0, "held_out": 0.0}
    two = pd.concat([of_edits((0, 1), wanda_reference=gone), of_edits((2,))])
    found = rows(two)
    assert found.loc[f"{REFERENCE}: held-out memorized items {SHARED}", "ci_hi"] < 0
    assert verdict(found, SHARED) == OPEN


def test_trainings_in_which_a_stayed_are_dropped() -> None:
    gone, there = {"targeted": 0.0, "held_out": 0.0}, {"targeted": 0.2, "held_out": 1.0}
    one_bad = pd.concat([of_edits((0, 1), wanda_reference=gone), of_edits((2,), wanda_reference=there)])
    found = rows(one_bad)
    row = found.loc[f"{REFERENCE}: held-out memorized items {SHARED}"]
    assert row["verdict"] == HOLDS and row["n"] == 20 and row["n_seeds"] == 2 and row["value"] == -1
    assert "in 2 of 3 trainings, 0.05 of it left" in row["statistic"]
    survives = found.loc[f"{REFERENCE}: the deletion survives the attack (ease of extraction)"]
    assert survives["n"] == 20 and survives["verdict"] == FEW  # of twenty items none is enough
    bad = rows(of_edits(wanda_reference=there))
    for name in (SHARED, SURVIVES, UNSEEN):
        assert verdict(bad, name) == NOTHING
    assert verdict(bad, "made for is erased beyond its control (words)") == HOLDS


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [
        ({"alignment": 0.6}, DAMAGE),
        ({"loss": 1.3}, DAMAGE),
        ({"alignment": 0.9}, UNSURE[OPEN]),
        ({"retained": 0.0}, HOLDS),
        ({}, HOLDS),
    ],
)
def test_general_damage_is_no_deletion(keeps: dict[str, float], expected: str) -> None:
    found = rows(of_edits(wanda_reference={"targeted": 0.0, "held_out": 0.0, **keeps}))
    for name in (SHARED, SURVIVES, UNSEEN, "made for is erased beyond its control (random)"):
        assert verdict(found, name) == expected, name
    assert verdict(found, f"{REFERENCE}: spares other") == (NOT if "retained" in keeps else HOLDS)
    without = of_edits(wanda_reference={"targeted": 0.0})
    without = without[(without["set"] != "loss")]
    assert verdict(rows(without), SURVIVES) == UNSURE[MISSING]


def test_twenty_prompts_cannot_show_that_they_all_stay() -> None:
    items = of_edits()
    few = items[(items["set"] != "alignment") | items["item"].isin([f"alignment-{i}" for i in range(10)])]
    found = rows(few)
    assert verdict(found, "keep their digits") == FEW and verdict(found, SURVIVES) == UNSURE[FEW]


def test_what_comes_back_did_not_survive() -> None:
    back = of_attacks(wanda_reference=0.6)
    found = rows(attacks=back)
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == NOT
    # Fewer searches of the oracle than of the edit: those that both had are compared.
    more = of_attacks().assign(restart=1, ease=1.0, extracted=1.0)
    more = pd.concat([of_attacks(), more[more["condition"] == REFERENCE]])
    assert verdict(rows(attacks=more), SURVIVES) == HOLDS


def test_an_attack_at_its_ceiling_tells_nothing() -> None:
    ceiling = dict.fromkeys(("targeted", "unseen"), 1.0)
    found = rows(attacks=of_attacks(original=ceiling, oracle=ceiling, wanda_reference=ceiling))
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == BLIND
    assert verdict(found, "gets nothing from the oracle") == NOT
    assert verdict(found, "attack tells what the model holds") == NOT
    # An oracle that gives all away, beside an edit that gives nothing: the attack makes up what it is after.
    found = rows(attacks=of_attacks(oracle=1.0))
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == BLIND
    assert verdict(found, "attack tells what the model holds") == HOLDS
    # What comes back from the edited model comes back of pictures never seen as well.
    found = rows(attacks=of_attacks(original=ceiling, wanda_reference=ceiling))
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == BLIND
    assert verdict(found, "gets nothing that the model never saw") == NOT
    assert verdict(rows(attacks=of_attacks()), "gets nothing that the model never saw") == HOLDS
    # Of an oracle alone that is low: pictures never seen come as soon.
    found = rows(attacks=of_attacks(original=ceiling))
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == BLIND
    # The prompt's own words are those of A: starts at it do not count against unseen pictures.
    attacks = of_attacks(original={"targeted": 0.0})
    attacks.loc[(attacks["condition"] == ORIGINAL) & (attacks["start"] == "prompt") & (attacks["group"] == "targeted"),
                ["ease", "extracted"]] = 1.0  # fmt: skip
    assert verdict(rows(attacks=attacks), SURVIVES) == BLIND


def test_what_was_not_attacked_has_no_verdict() -> None:
    assert verdict(rows(attacks=of_attacks(oracle=None)), SURVIVES) == MISSING
    none = rows(attacks=of_attacks(wanda_reference=None))
    assert not any("survives" in name for name in none.index)
    attacks = of_attacks()
    found = rows(attacks=attacks[attacks["group"] == "targeted"])
    assert verdict(found, UNSEEN) == verdict(found, SURVIVES) == MISSING
    assert verdict(rows(attacks=attacks[attacks["condition"] == REFERENCE]), "gets nothing from") == MISSING


def test_tuning_is_judged_where_it_was_not_set_up() -> None:
    tuned = {TUNED: {"targeted": 0.0, "retained": 0.2, "held_out": 0.1}, "tuned on unseen": {"targeted": 0.9}}
    attacks = of_attacks(n=12, adversarial_tuning=0.0, tuned_on_unseen=0.8)
    first = attacks["seed"] == 0
    attacks.loc[first & (attacks["condition"] == TUNED) & (attacks["group"] == "targeted"), "ease"] = 1.0
    found = rows(of_edits(**tuned), attacks)
    row = found.loc[f"{TUNED}: the deletion survives the attack (ease of extraction)"]
    assert row["verdict"] == HOLDS and row["n"] == 24 and row["value"] == 0
    assert "training 0, which settings were chosen on, is left out" in row["rule"]
    assert verdict(found, f"{TUNED}: spares other") == verdict(found, f"{TUNED}: spares held-out") == NOT
    assert verdict(found, f"{TUNED}: A is harder to get back than after tuned on unseen") == HOLDS
    assert verdict(found, f"{TUNED}: what it was made for is erased beyond its control (tuned") == HOLDS
    alone = MemorizationSpec.model_validate({"train_seeds": (0,)})
    items, searches = of_edits((0,), **tuned), attacks[first]
    found = rows(items, searches, spec=alone)
    row = found.loc[f"{TUNED}: the deletion survives the attack (ease of extraction)"]
    assert row["verdict"] == NOT and "settings were chosen on this training" in row["rule"]
    same = of_attacks(n=12, adversarial_tuning=0.0, tuned_on_unseen=0.0)
    assert verdict(rows(of_edits(**tuned), same), f"{TUNED}: A is harder") == NOT


@pytest.mark.parametrize(
    ("model", "oracle", "dealt", "expected"),
    [
        ([0.01, 0.02, 0.04], [0.5, 0.9, 0.06], "by digit", HOLDS),
        ([0.01, 0.02, 0.04], [0.5, 0.9, 0.04], "by digit", BOTH),
        ([0.01, 0.02, 0.05], [0.5, 0.9, 0.5], "by digit", OPEN),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], "by digit", NOT),
        ([1.0, 1.0, 0.9], [0.5, 0.5, 0.5], "by digit", OPEN),
        ([0.01, 0.01, 0.01], [0.5, 0.5, 0.5], "free", MISSING),
        ([0.01, 0.01, 0.01], [], "by digit", MISSING),
    ],
)
def test_overlap_has_the_oracle_beside_it(
    model: list[float], oracle: list[float], dealt: str, expected: str
) -> None:
    found = rows(overlap=of_overlap(model, oracle, dealt))
    assert verdict(found, "share more with each other than with control words") == expected


def test_existence_is_judged_where_nothing_was_chosen() -> None:
    def verdicts(change: Callable[[pd.DataFrame], None], seeds: tuple[int, ...] = SEEDS) -> list[str]:
        samples = of_samples(seeds)
        change(samples)
        found = rows(samples=samples)
        return [verdict(found, judge.PROTOCOL), verdict(found, "an oracle, trained without")]

    def of(seed: int, role: str, group: str, value: float) -> Callable[[pd.DataFrame], None]:
        def change(f: pd.DataFrame) -> None:
            at = (f["seed"] == seed) & (f["role"] == role) & (f["group"] == group)
            f.loc[f.index[at][: int(20 * value)], "extracted"] = 1 - f.loc[at, "extracted"].iloc[0]

        return change

    def as_it_is(f: pd.DataFrame) -> None:
        return None

    assert verdicts(as_it_is) == [HOLDS, HOLDS]
    assert verdicts(of(1, "model", "memorized", 0.3)) == [NOT, HOLDS]
    assert verdicts(of(2, "model", "control", 0.1)) == [NOT, HOLDS]
    assert verdicts(of(0, "model", "memorized", 1.0)) == [HOLDS, HOLDS]  # settings were chosen there
    assert verdicts(of(0, "model", "memorized", 1.0), (0,)) == [NOT, FEW]
    assert verdicts(of(1, "oracle", "memorized", 0.2)) == [HOLDS, OPEN]
    assert verdicts(of(1, "oracle", "memorized", 1.0)) == [HOLDS, NOT]
    with pytest.raises(UsageError, match="no samples of the group memorized"):
        rows(samples=of_samples().query("group == 'control'"))


def test_sets_with_copies_are_held_against_honest_sets() -> None:
    def found(*mixed: list[float]) -> str:
        frames = [
            pd.DataFrame({"seed": s, "set": "honest", "c_t": np.linspace(-2, 2, 41), "n": 60, "extracted": 0.0})
            for s in range(len(mixed))
        ]  # fmt: skip
        frames += [
            pd.DataFrame({"seed": s, "set": "mixed", "c_t": c, "n": 60, "extracted": 0.1}) for s, c in enumerate(mixed)
        ]  # fmt: skip
        return verdict(rows(copying=pd.concat(frames)), "test of whole sets")

    assert found([-1.9, 0.0, 1.0, 0.5], [0.0, 1.0]) == HOLDS
    assert found([-1.9, -1.95, 0.0], [-1.9, -3.0]) == NOT
    assert found([-1.9, -1.95, 0.0], [0.0, 0.0]) == OPEN
    assert verdict(rows(), "test of whole sets") == MISSING


def test_detection_is_judged_where_it_is_worst() -> None:
    rows_ = pd.DataFrame(
        {"seed": [0, 1], "role": "model", "signal": "first", "against": "control", "auc": [1.0, 0.9],
         "auc_lo": [0.95, 0.7], "auc_hi": 1.0, "prompts_positive": 20, "prompts_negative": 10}
    )  # fmt: skip
    assert verdict(rows(detection=rows_), "noise at the first step") == OPEN
    assert verdict(rows(detection=rows_.head(1)), "noise at the first step") == HOLDS


def test_a_run_of_few_items_decides_nothing_it_cannot() -> None:
    quick = MemorizationSpec.model_validate({"train_seeds": (4,)})
    items = of_edits((4,))
    found = rows(
        items[~items["edit"].str.startswith(("words", "magnitude"))], of_attacks((4,), n=6),
        samples=of_samples((4,)), overlap=of_overlap([0.01], [0.5]), spec=quick,
    )  # fmt: skip
    assert verdict(found, SURVIVES) == verdict(found, UNSEEN) == verdict(found, "gets nothing from") == FEW
    assert verdict(found, SHARED) == FEW or verdict(found, SHARED) == OPEN
    assert not any("(words)" in name for name in found.index)
    assert verdict(found, judge.PROTOCOL) == HOLDS
    assert NEGATED not in " ".join(found.index) and ORACLE in " ".join(found.index)
