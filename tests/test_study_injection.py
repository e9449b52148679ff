"""The study of injected memorization: its statistics on made cells, and the whole of it on tiny models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from interp.errors import UsageError
from interp.models.subject import CausalLM
from interp.models.zoo.small_lm import small_lm
from interp.studies.injection import holding, measures, ranking
from interp.studies.injection.edits import Dosed, names, of_units
from interp.studies.injection.edits import beside as beside_of
from interp.studies.injection.findings import FAILS, HOLDS, MISSING, UNDECIDED, Told, above, findings
from interp.studies.injection.memories import Material, rewritten, scrambled, topics_for
from interp.studies.injection.ranking import Asked
from interp.studies.injection.spec import Effort, InjectionSpec
from interp.studies.injection.study import InjectionStudy

BRIEF: dict[str, Any] = {
    "shares": (0.1,), "rate": 0.3, "updates": 200, "sequences": 2, "seeds": (0,), "held": 4, "never": 2,
    "passages": 2, "doses": (0.1, 0.3), "nodes": 2, "screen": 4, "gates": 3, "subnet": 1, "rewrite": 1,
    "factors": 4, "attacked": 2, "prompt": 2,
}  # fmt: skip
SPEC = InjectionSpec(
    model="tiny", seed=0, small="tiny", methods=("activation", "integrated", "wanda"), passages=12, recited=8,
    exposed=(0, 4), each=2, showing=6, later=4, masses=(0.6,), attacks=1, large=Effort(**BRIEF),
    little=Effort(**BRIEF | {"together": 0.3, "every": True, "screen": 0, "subspace": True}),
)  # fmt: skip


def cell(
    edit: str, group: str, item: str, exact: float, hits: float, nll: float, **more: Any
) -> dict[str, Any]:
    family = {"none": "none", "without": "none", "random": "control"}.get(edit, "units")
    head = {"subject": "model", "memory": "held", "edit": edit, "family": family, "control": edit == "random"}
    about = {
        "asked": 0.0,
        "dose": 0.0,
        "norm": 0.0,
        "draw": 0,
        "variant": "given",
        "accuracy": np.nan,
        "similarity": np.nan,
    }
    return {**head, **about, "group": group, "item": item, "exact": exact, "hits": hits, "nll": nll, **more}


def made(
    erased: float = 0.01,
    elsewhere: float = 0.0,
    unseen: float = 0.0,
    cost: float = 0.02,
    memory: float = 0.01,
) -> pd.DataFrame:
    """Ten sequences; `cut` erases all of them at a dose, and random neurons none.

    Args:
        elsewhere: what of them is recited behind other prefixes then. unseen: nats that what was never seen rises.
        cost: nats that prose rises by the edit. memory: by the memory, before it.
    """
    rows = []
    for edit, dose in (("none", 0.0), *((e, d) for e in ("random", "cut") for d in (0.001, 0.01, 0.1))):
        gone = edit == "cut" and dose >= erased
        at = {"asked": dose, "dose": dose}
        for i in range(10):
            rows.append(cell(edit, "targeted", f"a{i}", float(not gone), 0.25 if gone else 1.0, 0.0, **at))
            other = at | {"variant": "one replaced"}
            rows.append(cell(edit, "targeted", f"a{i}", elsewhere if gone else 1.0, 1.0, 0.0, **other))
            rise = 0.5 + i / 100 if gone else 0.0
            rows.append(cell(edit, "held_out", f"b{i}", 1.0, 0.5 if gone else 1.0, rise, **at))
            rows.append(cell(edit, "never", f"n{i}", 0.0, 0.0, 4.0 + i + (unseen if gone else 0.0), **at))
        for i in range(32):
            lost = cost if edit == "cut" else 0.0
            rows.append(cell(edit, "prose", f"topic{i % 8} {i}", 0.0, 0.0, 3.0 + i / 10 + lost, **at))
    for i in range(32):
        rows.append(cell("without", "prose", f"topic{i % 8} {i}", 0.0, 0.0, 3.0 + i / 10 - memory))
    return pd.DataFrame(rows)


def test_measures_are_means_and_ratios_over_the_model_before() -> None:
    table = tables()[1].set_index(["edit", "asked", "measure"]).sort_index()
    assert table.loc[("cut", 0.1, "targeted"), "value"] == 0
    assert 0.2 < table.loc[("cut", 0.1, "targeted"), "ci_hi"] < 0.4
    assert table.loc[("cut", 0.1, "held_out_hits"), "value"] == 0.5
    assert table.loc[("cut", 0.1, "prose"), "value"] == pytest.approx(np.exp(0.02))
    assert table.loc[("none", 0.0, "prose"), "value"] == 1
    assert table.loc[("none", 0.0, "prose_without"), "value"] == pytest.approx(np.exp(0.01))
    assert table.loc[("cut", 0.1, "prose_without"), "value"] == pytest.approx(np.exp(0.03))
    assert table.loc[("without", 0.0, "perplexity"), "value"] == pytest.approx(np.exp(3 + 1.55 - 0.01))
    assert tables()[1].query("edit == 'without'")["measure"].tolist() == ["perplexity"]
    assert "accuracy" not in table.index.get_level_values("measure")


def test_the_least_dose_that_erases_is_chosen() -> None:
    choice = measures.chosen(tables()[1], SPEC).set_index("edit")
    assert choice.loc["cut", ["asked", "erases"]].tolist() == [0.01, True]
    assert choice.loc["random", ["asked", "erases"]].tolist() == [0.001, False]
    assert measures.to_attack(choice.reset_index(), SPEC) == ["cut"]


def test_nothing_is_erased_of_what_was_not_recited() -> None:
    never = made().assign(exact=0.0)
    assert not measures.chosen(measures.summary(never), SPEC)["erases"].any()


def test_contrasts_are_paired_with_as_many_random_neurons() -> None:
    table = tables()[2].set_index(["edit", "asked", "measure"])
    assert table.loc[("cut", 0.1, "targeted"), "value"] == -0.75
    assert table.loc[("cut", 0.001, "targeted"), "value"] == 0
    assert table.loc[("cut", 0.1, "prose"), "value"] == pytest.approx(0.02)
    assert table.loc[("cut", 0.1, "specific"), "value"] == pytest.approx(0.545)
    assert table.loc[("cut", 0.1, "targeted"), "p"] == pytest.approx(2 / 2**10)


def recalls(magnitude: float = 0.01, n: int = 8, sound: bool = True) -> pd.DataFrame:
    of = {"activation": 0.0, "hard_concrete": 0.5, "magnitude": magnitude}
    return pd.DataFrame(
        [
            {
                "subject": "model", "injected": 0.01, "seed": 0, "item": f"i{i}", "part": "all", "share": np.nan,
                "method": method, "recall": value + i / 100 * (method == "hard_concrete"), "chance": 0.01,
                "sound": sound,
            }
            for i in range(n)
            for method, value in of.items()
        ]
    )  # fmt: skip


def searches(
    cut: float = 0.0, power: float = 1.0, never: float = 0.0, n: int = 10, late: int = 1
) -> pd.DataFrame:
    """Attacks: what is extracted of the memory that was cut, and behind a scrambled prefix of an intact one."""
    return pd.DataFrame(
        [
            {
                "subject": "model", "memory": "held", "condition": condition, "group": group, "item": f"{group}{i}",
                "before": 0.0, "extracted": value, "steps": (late if group == "targeted" else 5) if value else np.nan,
            }
            for condition, own in (("cut", cut), ("other prefix", power))
            for group, value in (("targeted", own), ("never", never if condition == "cut" else 0.0))
            for i in range(n)
        ]
    )  # fmt: skip


def beside(left: float = 1.0, other: float | None = None) -> pd.DataFrame:
    """Two draws of random neurons at the dose of `cut`: what of the ten is recited behind other prefixes then."""
    return pd.DataFrame(
        [
            cell(name, "targeted", f"a{i}", value, 1.0, 0.0, asked=0.01, draw=draw, variant="one replaced")
            for name, value in (("random", left), ("equal norm, cut", left if other is None else other))
            for draw in range(2)
            for i in range(10)
        ]
    ).assign(of="cut")


@cache
def tables(**how: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    cells = made(**how)
    return cells, measures.summary(cells), measures.contrasts(cells)


def told(how: dict[str, float] | None = None, **changes: Any) -> Told:
    cells, doses, contrasts = tables(**how or {})
    choice = measures.chosen(doses, SPEC)
    at = cells["asked"].isin([0.0, 0.01])
    spec = SPEC.model_copy(update={"methods": ("activation", "hard_concrete")})
    given: dict[str, Any] = {"beside": beside()}
    given |= {"edits": doses[doses["asked"].isin([0.0, 0.01])], "chosen": choice, "attacks": searches()}
    given |= {"recall": recalls(), "curves": None} | changes
    return Told(contrasts=contrasts, items=cells[at], spec=spec, **given)


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["statistic"], table["verdict"], strict=True))


DELETED = "still recited behind other prefixes"
SHARED = "held-out rise - never seen - random's"
ATTACKED = "extracted under attack, cut"


def test_neurons_are_found_only_beyond_their_length() -> None:
    found = verdicts(findings(told()))
    assert found["recall of activation - magnitude"] == FAILS
    assert found["recall of hard_concrete - magnitude"] == HOLDS
    assert found["recall of hard_concrete - activation"] == HOLDS
    assert "recall of magnitude - magnitude" not in found
    longest = verdicts(findings(told(recall=recalls(magnitude=1.0))))
    assert longest["recall of hard_concrete - magnitude"] == FAILS
    for few in (recalls(n=4), recalls(sound=False)):
        assert verdicts(findings(told(recall=few)))["recall of hard_concrete - magnitude"] == MISSING


def test_deletion_is_judged_by_what_no_dose_was_chosen_on() -> None:
    assert verdicts(findings(told()))[f"{DELETED}, cut"] == HOLDS
    assert verdicts(findings(told({"elsewhere": 1.0})))[f"{DELETED}, cut"] == FAILS
    table = findings(told({"elsewhere": 1.0})).set_index("statistic")
    assert table.loc["random - cut", ["value", "verdict"]].tolist() == [0, FAILS]
    assert verdicts(findings(told({"cost": 0.5})))[f"{DELETED}, cut"] == FAILS


@pytest.mark.parametrize(
    ("left", "other", "says"),
    [(1.0, None, HOLDS), (0.5, None, HOLDS), (0.0, None, FAILS), (1.0, 0.0, FAILS)],
)
def test_a_deletion_that_random_cuts_make_too_is_general_damage(
    left: float, other: float | None, says: str
) -> None:
    found = verdicts(findings(told(beside=beside(left, other))))
    assert found[f"{DELETED}, cut"] == says
    assert found["random - cut"] == (HOLDS if left else FAILS)
    assert found["equal norm, cut - cut"] == says


def test_a_control_that_takes_now_and_then_as_much_is_not_exceeded() -> None:
    table = beside()
    table["exact"] = (table["item"] == "a0").astype(float)
    assert verdicts(findings(told(beside=table)))[f"{DELETED}, cut"] == FAILS
    unheard = verdicts(findings(told(beside=table.iloc[:0])))
    assert unheard[f"{DELETED}, cut"] == unheard["control - cut"] == MISSING


def test_prose_is_held_against_the_model_before_the_memory() -> None:
    def verdict(**how: float) -> str:
        return verdicts(findings(told(how)))[f"{DELETED}, cut"]

    assert verdict(cost=0.06, memory=0.06) == FAILS
    assert verdict(cost=0.06, memory=0.0) == HOLDS
    assert verdict(cost=0.01, memory=0.2) == MISSING
    assert verdict(cost=-0.19, memory=0.2) == HOLDS


def test_neurons_are_shared_only_beyond_damage_to_all_text() -> None:
    assert verdicts(findings(told()))[f"{SHARED}, cut"] == HOLDS
    assert verdicts(findings(told({"unseen": 1.0})))[f"{SHARED}, cut"] == FAILS
    assert verdicts(findings(told({"cost": 0.5})))[SHARED] == MISSING


def test_a_deletion_survives_only_an_attack_that_has_power() -> None:
    def verdict(**how: Any) -> str:
        return verdicts(findings(told(attacks=searches(**how))))[ATTACKED]

    assert verdict() == HOLDS
    assert verdict(cut=1.0) == FAILS
    assert verdict(power=0.0) == MISSING
    assert verdict(cut=1.0, power=0.0) == FAILS
    assert verdict(n=7) == MISSING
    assert verdict(cut=1.0, never=1.0, late=1) == FAILS
    assert verdict(cut=1.0, never=1.0, late=9) == UNDECIDED


def curves(recognised: dict[int, float], recalled: dict[int, float], n: int = 8) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "phase": "shown",
                "step": 9,
                "exposures": k,
                "measure": m,
                "value": v,
                "ci_lo": v,
                "ci_hi": v,
                "n": n,
            }
            for m, by in (("recognition", recognised), ("recall", recalled))
            for k, v in by.items()
        ]
    )


@pytest.mark.parametrize(
    ("recognised", "recalled", "n", "says"),
    [
        ({1: 0.9, 2: 0.9, 4: 0.9}, {1: 0.0, 2: 0.0, 4: 0.8}, 8, HOLDS),
        ({1: 0.1, 2: 0.1, 4: 0.9}, {1: 0.0, 2: 0.8, 4: 0.8}, 8, FAILS),
        ({1: 0.1, 2: 0.1, 4: 0.1}, {1: 0.0, 2: 0.8, 4: 0.8}, 8, FAILS),
        ({1: 0.1, 2: 0.9, 4: 0.9}, {1: 0.0, 2: 0.8, 4: 0.8}, 8, UNDECIDED),
        ({1: 0.9, 2: 0.1, 4: 0.9}, {1: 0.0, 2: 0.0, 4: 0.8}, 8, UNDECIDED),
        ({1: 0.9, 2: 0.9, 4: 0.9}, {1: 0.0, 2: 0.0, 4: 0.0}, 8, UNDECIDED),
        ({1: 0.9, 2: 0.9, 4: 0.9}, {1: 0.0, 2: 0.0, 4: 0.8}, 4, MISSING),
    ],
)
def test_recognition_comes_before_recall_where_both_persist(
    recognised: dict[int, float], recalled: dict[int, float], n: int, says: str
) -> None:
    table = findings(told(curves=curves(recognised, recalled, n)))
    assert table.loc[table["finding"].str.contains("recognised"), "verdict"].tolist() == [says]


def test_nothing_is_judged_over_nothing() -> None:
    given = told()
    one_side = given.attacks[given.attacks["group"] == "targeted"]
    assert verdicts(findings(told(attacks=one_side)))[ATTACKED] == MISSING
    choice = given.chosen.assign(before=0.0, erases=False)
    assert verdicts(findings(told(chosen=choice)))[DELETED] == MISSING
    unheld = findings(told(unheld=(("small", "together"),)))
    assert unheld.loc[unheld["memory"] == "together", "verdict"].tolist() == [MISSING]
    assert above(np.nan, np.nan, 0) == MISSING


def test_draws_of_a_control_are_averaged_and_resampled() -> None:
    cells = made()
    other = cells[cells["edit"] == "random"].assign(draw=1, hits=0.5)
    table = measures.contrasts(pd.concat([cells, other])).set_index(["edit", "asked", "measure"])
    own = table.loc[("cut", 0.1, "targeted")]
    assert own["value"] == pytest.approx(0.25 - (1.0 + 0.5) / 2)
    assert own["draws"] == 2
    assert own["ci_lo"] == pytest.approx(-0.75) and own["ci_hi"] == pytest.approx(-0.25)


def test_what_a_locator_has_not_scored_is_neither_cut_nor_counted(model: CausalLM) -> None:
    ranked = ranking.control("random", model, 0)
    ranked.loc[ranked.index[round(0.2 * len(ranked)) :], "score"] = np.nan
    asked = Asked(model, (), (), SPEC.little)
    assert [d.asked for d in of_units("leave_one_out", ranked, asked, SPEC.little.doses)] == [0.1]
    n = len(ranked)
    table = pd.DataFrame({"part": "all", "k": [n // 10, n // 2], "units": n, "recall": 0.5, "auc": 0.5})
    told = holding.within(table, ranked)
    assert told["recall"].isna().tolist() == [False, True] and told["auc"].isna().all()


def test_what_is_cut_has_controls_that_cut_as_much(model: CausalLM) -> None:
    effort = SPEC.little.model_copy(update={"draws": 2})
    asked = Asked(model, (), (), effort)
    (units,) = of_units("activation", ranking.control("magnitude", model, 0), asked, (0.1,))
    weights = Dosed("wanda weights", "weights", 0.1, units.change)
    size = units.change.budget(model)
    assert [(d.edit, d.asked, d.draw) for d in beside_of(units, asked, 0)] == [
        ("random", 0.1, 0),
        ("random", 0.1, 1),
    ]
    found = list(beside_of(weights, asked, 0))
    assert [d.edit for d in found] == ["random, wanda weights", "equal norm, wanda weights"] * 2
    assert all(d.family == "control" and d.asked == 0.1 for d in found)
    for same, far in (found[:2], found[2:]):
        assert same.change.budget(model).changed == size.changed
        assert far.change.budget(model).norm == pytest.approx(size.norm, rel=0.01)
        assert same.change.budget(model).norm != pytest.approx(size.norm, rel=0.01)


def test_what_would_not_be_counted_is_not_made() -> None:
    effort = SPEC.little.model_copy(update={"screen": 4, "skipped": ("wanda",)})
    spec = SPEC.model_copy(update={"methods": ("activation", "leave_one_out", "wanda")})
    assert names(spec, effort, told=True)[:4] == ["random", "magnitude", "known", "activation"]
    assert not {"leave_one_out", "wanda"} & set(names(spec, effort, told=True))
    assert "leave_one_out" in names(spec, effort.model_copy(update={"screen": 0}), told=True)


def test_incomplete_gradients_and_moving_gates_are_not_counted() -> None:
    for gap, says in ((0.1, True), (0.3, False)):
        located = SimpleNamespace(completeness_=pd.DataFrame({"gap": [gap, -gap], "cost": [1.0, 1.0]}))
        assert ranking.sound("integrated", located) is says
    for opening, says in (
        (np.r_[np.linspace(1, 0.2, 50), np.full(50, 0.2)], True),
        (np.linspace(1, 0, 100), False),
        (np.linspace(0.96, 0.92, 20), False),
    ):
        assert ranking.sound("slimming", SimpleNamespace(history_=[(0.0, o) for o in opening])) is says
    assert not ranking.sound("slimming", SimpleNamespace(history_=[(0.0, 0.5)] * 9))


class Job:
    """What a study is told by its run folder."""

    def __init__(self, folder: Path, stored: Any = None):
        self.folder, self.stored, self.remarks = folder, stored, list[str]()

    def json(self, name: str, make: Any) -> Any:
        return self.stored or make()

    def remark(self, text: str) -> None:
        self.remarks.append(text)


def study(job: Job, model: CausalLM, updates: int = 200) -> InjectionStudy:
    effort = SPEC.little.model_copy(update={"updates": updates})
    out = InjectionStudy(SPEC.model_copy(update={"little": effort}), job)  # type: ignore[arg-type]
    out.little = model
    return out


def test_a_run_goes_on_with_its_own_small_model_alone(model: CausalLM, tmp_path: Path) -> None:
    study(Job(tmp_path), model).same_small()
    own = {"name": model.name, "fingerprint": model.fingerprint}
    study(Job(tmp_path, own), model).same_small()
    with pytest.raises(UsageError, match="began with the small model"):
        study(Job(tmp_path, own | {"fingerprint": "another"}), model).same_small()


@pytest.mark.parametrize("exact", [(1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 0)])
def test_only_what_is_recited_is_a_memory(
    model: CausalLM, tmp_path: Path, exact: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "cells", lambda *_: pd.DataFrame({"exact": exact}))
    job = Job(tmp_path)
    memory = study(job, model, updates=1).memory("small", "finetuned")
    assert len(memory.taught) == 4
    assert memory.items == tuple(i for i, e in zip(memory.taught, exact, strict=True) if e)
    lost = 4 - sum(exact)
    assert job.remarks == ([f"small, finetuned: {lost} of 4 are not recited, left out"] if lost else [])


def test_specs_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"methods": ("astrology",)},
        {"small": "huge"},
        {"exposed": (1, 2)},
        {"length": 12, "prefix": 10},
    ):
        with pytest.raises(ValidationError):
            InjectionSpec(model="tiny", **wrong)
    with pytest.raises(ValidationError, match="rising"):
        Effort(doses=(0.1, 0.01))


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return small_lm(list(topics_for("compare").values()), "tiny", seed=0)


def test_material_is_apart_and_prefixes_change_only_what_is_given(model: CausalLM) -> None:
    material = Material.of(model, SPEC.little, SPEC)
    groups = [
        material.held,
        material.never,
        material.others,
        material.choose,
        material.measure,
        material.ordinary,
        material.kept,
    ]
    ids = [item.ids for group in groups for item in group]
    assert len(set(ids)) == len(ids)
    item = material.held[0]
    (mixed,) = scrambled([item], 0, model.tokens.n_vocab)
    assert mixed.suffix == item.suffix and mixed.ids[: item.prefix] != item.ids[: item.prefix]
    other = {name: rows[0] for name, rows in rewritten([item], 0, model.tokens.n_vocab).items()}
    assert other["first dropped"].suffix == other["one replaced"].suffix == item.suffix
    assert sum(a != b for a, b in zip(other["one replaced"].ids, item.ids, strict=True)) <= 1
    assert other["longer"].prefix > item.prefix > other["shorter"].prefix


def test_the_first_of_a_ranking_are_silenced(model: CausalLM) -> None:
    ranked = ranking.control("magnitude", model, 0)
    units = ranking.first(ranked, 0.1, model)
    chosen = {(repr(part), unit) for part, own in units.items() for unit in own}
    best = ranked.sort_values("score", ascending=False)[: round(0.1 * len(ranked))]
    assert chosen == set(zip(best["part"], best["unit"], strict=True))
    assert ranking.zeroed(model, units).budget(model).changed == len(chosen) * model.d_model
