"""The study of injected memorization: its statistics on made cells, and the whole of it on tiny models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from interp.models.subject import CausalLM
from interp.models.zoo.small_lm import small_lm
from interp.studies.injection import measures, ranking
from interp.studies.injection.findings import FAILS, HOLDS, MISSING, Told, above, findings
from interp.studies.injection.memories import Material, rewritten, topics_for
from interp.studies.injection.spec import Effort, InjectionSpec

BRIEF: dict[str, Any] = {
    "shares": (0.1,), "rate": 0.3, "updates": 200, "sequences": 2, "seeds": (0,), "held": 4, "never": 2,
    "passages": 2, "doses": (0.1, 0.3), "nodes": 2, "screen": 4, "gates": 3, "subnet": 1, "rewrite": 1,
    "factors": 4, "attacked": 2, "prompt": 2,
}  # fmt: skip
SPEC = InjectionSpec(
    model="tiny", small="tiny", methods=("activation", "integrated", "wanda"), passages=12, recited=8,
    exposed=(0, 4), each=2, showing=6, later=4, masses=(0.6,), attacks=1, large=Effort(**BRIEF),
    little=Effort(**BRIEF | {"together": 0.3, "every": True, "screen": 0, "subspace": True}),
)  # fmt: skip


def cell(
    edit: str, group: str, item: str, exact: float, hits: float, nll: float, **more: Any
) -> dict[str, Any]:
    family = {"none": "none", "random": "control"}.get(edit, "units")
    head = {"subject": "model", "memory": "held", "edit": edit, "family": family, "control": edit == "random"}
    about = {
        "asked": 0.0,
        "dose": 0.0,
        "norm": 0.0,
        "variant": "given",
        "accuracy": np.nan,
        "similarity": np.nan,
    }
    return {**head, **about, "group": group, "item": item, "exact": exact, "hits": hits, "nll": nll, **more}


def made(erased: float = 0.01) -> pd.DataFrame:
    """Ten sequences; `cut` erases all of them at a dose, and random neurons none."""
    rows = []
    for edit, dose in (("none", 0.0), *((e, d) for e in ("random", "cut") for d in (0.001, 0.01, 0.1))):
        gone = edit == "cut" and dose >= erased
        at = {"asked": dose, "dose": dose}
        for i in range(10):
            rows.append(cell(edit, "targeted", f"a{i}", float(not gone), 0.25 if gone else 1.0, 0.0, **at))
            rows.append(cell(edit, "held_out", f"b{i}", 1.0, 0.5 if gone else 1.0, 0.0, **at))
            rows.append(
                cell(edit, "prose", f"p{i}", 0.0, 0.0, 3.0 + i + (0.02 if edit == "cut" else 0.0), **at)
            )
    return pd.DataFrame(rows)


def test_measures_are_means_and_ratios_over_the_model_before() -> None:
    table = measures.summary(made()).set_index(["edit", "asked", "measure"])
    assert table.loc[("cut", 0.1, "targeted"), "value"] == 0
    assert 0.2 < table.loc[("cut", 0.1, "targeted"), "ci_hi"] < 0.4
    assert table.loc[("cut", 0.1, "held_out_hits"), "value"] == 0.5
    assert table.loc[("cut", 0.1, "prose"), "value"] == pytest.approx(np.exp(0.02))
    assert table.loc[("none", 0.0, "prose"), "value"] == 1
    assert "accuracy" not in table.index.get_level_values("measure")


def test_the_least_dose_that_erases_is_chosen() -> None:
    choice = measures.chosen(measures.summary(made()), SPEC).set_index("edit")
    assert choice.loc["cut", ["asked", "erases"]].tolist() == [0.01, True]
    assert choice.loc["random", ["asked", "erases"]].tolist() == [0.001, False]
    assert measures.to_attack(choice.reset_index(), SPEC) == ["cut"]


def test_nothing_is_erased_of_what_was_not_recited() -> None:
    never = made().assign(exact=0.0)
    assert not measures.chosen(measures.summary(never), SPEC)["erases"].any()


def test_contrasts_are_paired_with_as_many_random_neurons() -> None:
    table = measures.contrasts(made()).set_index(["edit", "asked", "measure"])
    assert table.loc[("cut", 0.1, "targeted"), "value"] == -0.75
    assert table.loc[("cut", 0.001, "targeted"), "value"] == 0
    assert table.loc[("cut", 0.1, "prose"), "value"] == pytest.approx(0.02)
    assert table.loc[("cut", 0.1, "targeted"), "p"] == pytest.approx(2 / 2**10)


def told(extracted: float = 0.0, **changes: Any) -> Told:
    cells = made()
    doses = measures.summary(cells)
    recall = pd.DataFrame(
        [
            {
                "subject": "model", "injected": 0.01, "seed": 0, "item": f"i{i}", "part": "all", "share": np.nan,
                "method": method, "recall": value, "chance": 0.01,
            }
            for i in range(8)
            for method, value in (("activation", 0.0), ("hard_concrete", 0.5 + i / 100))
        ]
    )  # fmt: skip
    attacks = pd.DataFrame(
        [
            {"subject": "model", "memory": "held", "condition": "cut", "group": group, "extracted": value}
            for group, value in (("targeted", extracted), ("never", 0.0))
            for _ in range(10)
        ]
    )
    choice = measures.chosen(doses, SPEC)
    final = doses[doses["asked"].isin([0.0, 0.01])]
    spec = SPEC.model_copy(update={"methods": ("activation", "hard_concrete")})
    given = {"edits": final, "chosen": choice, "attacks": attacks, "recall": recall, **changes}
    return Told(contrasts=measures.contrasts(cells), curves=None, spec=spec, **given)


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["statistic"], table["verdict"], strict=True))


def test_claims_are_judged_by_intervals() -> None:
    found = verdicts(findings(told()))
    assert found["recall of activation - chance"] == FAILS
    assert found["recall of hard_concrete - activation"] == HOLDS
    assert found["recited of what was located, cut"] == HOLDS
    assert found["held-out hits under cut - random's"] == HOLDS
    assert found["extracted under attack, cut"] == HOLDS
    assert verdicts(findings(told(extracted=1.0)))["extracted under attack, cut"] == FAILS


def test_nothing_is_judged_over_nothing() -> None:
    given = told()
    one_side = given.attacks[given.attacks["group"] == "targeted"]
    assert verdicts(findings(told(attacks=one_side)))["extracted under attack, cut"] == MISSING
    choice = given.chosen.assign(before=0.0, erases=False)
    assert verdicts(findings(told(chosen=choice)))["recited of what was located"] == MISSING
    assert above(np.nan, np.nan, 0) == MISSING


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
    ]
    ids = [item.ids for group in groups for item in group]
    assert len(set(ids)) == len(ids)
    item = material.held[0]
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
