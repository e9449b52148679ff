"""The figures of the study of memorization from small tables in the shapes that the studies write."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from study_script import written

from interp.measure.stats import proportion_ci
from tests.plot import memory_study_frames as f
from tests.plot import memory_text_frames as t

MINUS = "\u2212"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return importlib.import_module("memorization_study")


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    return importlib.import_module("memorization_rows")


def put(place: Path, seeds: int) -> Path:
    for part, tables in (("memorization", f.memorization(seeds)), ("injection", t.injection())):
        (place / part).mkdir(parents=True)
        for name, frame in tables.items():
            frame.to_parquet(place / part / f"{name}.parquet")
        (place / part / "spec.yaml").write_text("model: m\n")
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def drawn(study: ModuleType, data: Path) -> dict[str, go.Figure]:
    figures: dict[str, go.Figure] = study.figures(data)
    return figures


NAMES = (
    "images", "images-held-out", "existence", "signals", "detection", "doses", "doses-others", "doses-steps", "edits",
    "contrasts",
    "overlap-wanda-reference-1", "overlap-subspace", "overlap", "coverage", "attacked", "work", "exposures",
    "exposures-on-the-way", "lm-recall", "lm-recall-layers-small-0.1", "lm-recall-curves-small-0.1",
    "lm-recall-layers-small-1", "lm-recall-curves-small-1", "lm-doses-small-injected-0.01", "lm-doses-small-together",
    "lm-edits-small-together", "lm-contrasts-small-injected-0.01", "lm-contrasts-small-together", "lm-attacked-small",
    "lm-work-small-together", "lm-prefixes-small-together", "lm-exposures",
)  # fmt: skip


def test_every_figure_from_its_tables(drawn: dict[str, go.Figure]) -> None:
    assert set(drawn) == {f"memorization-study-{n}" for n in NAMES}


def test_pictures_are_the_same_from_the_run_and_from_what_is_committed(
    study: ModuleType, data: Path, drawn: dict[str, go.Figure], tmp_path: Path
) -> None:
    written_ = study.export({"memorization": data / "memorization"}, tmp_path)
    assert {p.name for p in written_} == {*(f"{n}.parquet" for n in f.memorization()), "spec.yaml"}
    kept = pd.read_parquet(tmp_path / "memorization" / "pictures.parquet")
    assert kept["image"].iloc[1].dtype == np.uint8 and set(kept["image"].iloc[1]) == {1}
    assert "extracted_encoder" not in pd.read_parquet(tmp_path / "memorization" / "samples.parquet")
    again = study.figures(tmp_path)
    assert set(again) == {n for n in drawn if "-lm-" not in n}
    for name, fig in again.items():
        assert fig.to_json() == drawn[name].to_json(), name
    grid = drawn["memorization-study-images"]
    lines = ["original", "before", "Wanda (corrected)", "Wanda (corrected), attacked", "adversarial fine-tuning",
             "adversarial fine-tuning, attacked", "oracle", "oracle, attacked"]  # fmt: skip
    assert list(grid.layout.yaxis.ticktext) == lines and len(grid.data) == 16
    # The picture itself is not framed as if it had been drawn.
    assert len([s for s in grid.layout.shapes if s.name == "replicated"]) == 2 * 3


def test_edits_are_told_from_controls_with_the_levels_before_and_of_the_oracle(
    drawn: dict[str, go.Figure],
) -> None:
    fig = drawn["memorization-study-edits"]
    levels = {(s.name, s.xaxis or "x"): s.x[0] for s in fig.data if s.mode == "lines"}
    assert levels["before", "x"] == 0.98 and levels["oracle", "x"] == 0.0 and levels["before", "x6"] == 0.85
    assert ("oracle", "x6") not in levels
    # Of how far samples are from their own pictures: four items at .5 to .8, the oracle's samples, and the threshold.
    assert [levels[n, "x3"] for n in ("before", "oracle", "nearer: a copy")] == pytest.approx(
        [0.65, 0.5, 1.2]
    )
    assert "before" not in fig.layout.yaxis.ticktext and "NeMo" in fig.layout.yaxis.ticktext
    contrasts = drawn["memorization-study-contrasts"]
    assert {s.name for s in contrasts.data if s.mode == "markers"} == {"random", "ordinary prompts"}


def test_several_trainings_are_taken_together_item_by_item(rows: ModuleType) -> None:
    edits, items = f.edits(range(2)), f.edit_items(range(2))
    told = rows.edited(edits, items).set_index(["edit", "measure"])
    # Two of four items in the first training, all four in the second.
    r = told.loc[("nemo", "targeted")]
    want = proportion_ci(np.array([1, 1, 0, 0, 1, 1, 1, 1.0]), [str(i) for i in range(8)])
    assert (r["value"], r["n"], r["n_seeds"]) == (0.75, 8, 2) and (r["ci_lo"], r["ci_hi"]) == pytest.approx(
        want
    )
    assert told.loc[("nemo", "frechet"), "value"] == pytest.approx(1.1) and np.isnan(
        told.loc[("nemo", "frechet"), "ci_lo"]
    )
    assert told.loc[("nemo", "targeted_own"), "value"] == pytest.approx(0.5 * (0.65 + 1.65))
    one = rows.edited(edits[edits["seed"] == 0], items[items["seed"] == 0]).set_index(["edit", "measure"])
    assert one.loc[("nemo", "targeted"), "value"] == pytest.approx(f.measured("nemo", "targeted"))
    assert rows.replicated(f.samples(range(2))).query("role == 'model' and group == 'memorized'")[
        "n"
    ].tolist() == [16, 16]


def test_attacks_count_items_of_which_any_search_succeeded(rows: ModuleType) -> None:
    told = rows.under_attack(f.attacks(range(2))).set_index(["condition", "group", "metric"])
    assert told.loc[("nemo", "targeted", "attacked_any"), "value"] == 1.0
    assert told.loc[("nemo", "targeted", "attacked"), "value"] == 0.5
    assert told.loc[("original", "targeted", "before"), "value"] == 0.75
    assert told.loc[("nemo", "targeted", "attacked_any"), "n"] == 8, "items of two trainings"
    assert told.loc[("nemo", "targeted", "attacked_any"), "steps"] == 25
    assert told.loc[("oracle", "targeted", "attacked_any"), "value"] == 0.0
    work = rows.work(f.attacks(range(1)))
    own = work[(work["condition"] == "nemo") & (work["group"] == "targeted")]
    assert own["steps"].tolist() == [0, 10, 20, 30, 40] and own["value"].tolist() == [0, 0.25, 0.5, 0.75, 1.0]


def test_overlaps_are_held_against_their_deals(rows: ModuleType) -> None:
    told = rows.dealt(f.overlaps(range(2))).set_index(["role", "method", "a", "b"])
    ab, ac = (told.loc[("model", "subspace", "A", b)] for b in ("B", "controls"))
    assert told.loc[("oracle", "subspace", "A", "B"), "value"] == pytest.approx(0.3)
    assert (ab["value"], ab["p"]) == (pytest.approx(0.55), pytest.approx(1 / 50))
    # Of deals at .1 to .4, the 17 that are no less than .3.
    assert ac["value"] == pytest.approx(0.3) and ac["p"] == pytest.approx((1 + 17) / 50)
    assert ab["null_lo"] == pytest.approx(0.1075) and ab["null_hi"] == pytest.approx(0.3925)


def test_contrasts_of_sequences_are_those_at_the_chosen_dose(rows: ModuleType) -> None:
    told = rows.at_dose(t.contrasts(), t.chosen())
    assert set(told[told["memory"] == "together"]["asked"]) == {0.01}
    assert set(told[told["memory"] == "injected 0.01"]["asked"]) == {0.05}, "none was chosen there"
    assert set(rows.at_dose(t.contrasts(), None)["asked"]) == {0.05}


def test_names_are_those_that_are_read(rows: ModuleType) -> None:
    assert (
        rows.named("wanda weights") == "Wanda contrast (weights)"
        and rows.named("random weights") == "random weights"
    )
    assert rows.named("rewritten (hard_concrete)") == "hard concrete (rewritten)"
    edits = ("none", "memorized", "nemo", "words", "random 1 (nemo)", "tuned on unseen", "negation", "oracle")
    assert [rows.family(e) for e in edits] == [
        "none", "none", "located", "control", "control", "control", "trained", "oracle",
    ]  # fmt: skip
    assert rows.named("random (nemo)") == "random, beside NeMo"
    assert rows.named("wanda reference, tau 1") == "Wanda (published), 1 of the steps"
    frame = pd.DataFrame(
        {"edit": ["none", "nemo", "random 0 (nemo)", "random 1 (nemo)", "words (activation)"]}
    )
    assert rows.pooled(frame)["edit"].tolist() == [
        "none", "nemo", "random (nemo)", "random (nemo)", "words (activation)",
    ]  # fmt: skip
    assert rows.beside(frame, "nemo")["edit"].tolist() == ["none", "nemo", "random", "random"]


def test_sequences_that_nothing_elicits_have_no_curve_and_few_prefixes_are_drawn(
    drawn: dict[str, go.Figure],
) -> None:
    assert "memorization-study-lm-work-small-finetuned" not in drawn
    shown = [s.name for s in drawn["memorization-study-lm-prefixes-small-together"].data if s.showlegend]
    assert shown[:2] == ["before", "known neurons"] and "Wanda contrast" in shown and len(shown) == 5
    ends = drawn["memorization-study-lm-exposures"]
    after = next(s for s in ends.data if s.name == "after they were shown")
    assert after.y[-1] == pytest.approx(0.5 * 16 / 20), "the last step of the phase"
    marks = [s.name for s in drawn["memorization-study-lm-attacked-small"].data if s.showlegend]
    assert marks == ["A, by its prefix", "A, under attack", "never seen, under attack"]


def test_what_is_not_there_is_left_out(study: ModuleType, data: Path, tmp_path: Path) -> None:
    study.export({"injection": data / "injection"}, tmp_path)
    assert all(n.startswith("memorization-study-lm-") for n in study.figures(tmp_path))
    assert "known neurons" in study.numbers(tmp_path) and "oracle" not in study.numbers(tmp_path)
    assert study.numbers(tmp_path / "none") == "" and study.figures(tmp_path / "none") == {}


def test_numbers_are_those_of_the_tables(study: ModuleType, data: Path, tmp_path: Path) -> None:
    text = study.numbers(data)
    for line in (
        "Trainings: 1 of the pipeline and of its oracle, 1,400 different pictures; 359 held-out pictures",
        "| memorized pictures | 0.75 [",
        "| noise difference, first step | 0.99 [0.95, 1.00] | 0.90 [0.30, 0.95] |",
        f"| memorized | 90% | 2% | {MINUS}4.20 |",
        "| NeMo | 10.0% | 2.5 | 0.58 [0.48, 0.68] | 0.69 [0.59, 0.79] | 0.65 [", "| 2,040 | 12 |",
        "Erase A on the samples that doses are chosen on: Wanda (published), Wanda (corrected) and activation.",
        f"| Wanda (published) | A | {MINUS}0.90 [{MINUS}1.10, {MINUS}0.70] |",
        "| Wanda (published), 1 % of a row | A and B | 0.550 | [0.108, 0.393] | 0.020 | 0.300 (p 0.360) | 0.050 |",
        "Wanda (published) at 1 %, oracle 0: 0.210 (p = 0.500)",
        "| random, beside Wanda (published) | 10.0% | 2.5 |",
        "| prompts of B, blocked by 8 units of A | 80% |  |",
        "| original | 0.75 \u2192 1.00 [0.40, 1.00] |", "| oracle | 0.00 \u2192 0.00 [0.00, 0.60] |",
        "error where the attack ends 0.050 to 0.100",
        "| early, recall |  |  | 0.25 [0.15, 0.35] |",
        "| memorized items replicate | MR | 0.900 [0.800, 0.950] | 20 | **holds** |",
        "| small | 3 of 3,000 (0.1 %) | 2 | 4.50 | 0.050 | 50% |",
        "| hard concrete | 0.67 [0.57, 0.77] (AUC 0.80) |",
        "| scripture | 0% of 2 | 50% of 2 | 50% of 2 |",
        "| known neurons | 1.00% | 0.00 [0.00, 0.10] |",
        f"| small, together | activation | {MINUS}0.10 [{MINUS}0.15, {MINUS}0.05] |",
        "| small, together | known neurons | 0.10 \u2192 0.40 [0.30, 0.50] | 0.10 \u2192 0.05 [",
        "| shown, recognition | 0.00 [0.00, 0.10] | 0.10 [0.00, 0.20] |",
        "| exposure | small | recall | 4.000 | 8 | **undecided** |",
    ):  # fmt: skip
        assert line in text, line
    two = study.numbers(put(tmp_path / "two", 2))
    assert (
        "in the training where it does worst" in two
        and "| noise difference, first step | 0.98 [0.94, 0.99]" in two
    )
    assert "| 2,050 | 12 |" in two and "| NeMo | 10.0% | 2.5 | 0.75 [" in two


def test_the_readme_says_what_the_committed_tables_say(study: ModuleType) -> None:
    page = (study.DATA / "README.md").read_text()
    assert written(page, study.numbers(study.DATA)) == page
    # A number that the tables do not have is not in it.
    assert written(page, "none of it") != page


def test_the_front_page_says_what_the_tables_of_language_models_say(study: ModuleType) -> None:
    folder = study.DATA / "injection"
    edits, attacked = (pd.read_parquet(folder / f"{n}.parquet") for n in ("edits", "attacked"))
    page = " ".join((study.DATA.parents[2] / "README.md").read_text().split())

    edits = edits[edits["memory"] == edits["subject"].map({"model": "finetuned", "small": "together"})]
    edits = edits.set_index(["subject", "edit", "measure"])
    attacked = attacked[attacked["metric"] == "attacked"].set_index(["subject", "condition", "group"])

    def edit(subject: str, name: str, measure: str, what: str = "value") -> float:
        return float(edits.loc[(subject, name, measure), what])

    def attack(subject: str, condition: str, group: str = "targeted") -> float:
        return float(attacked.loc[(subject, condition, group), "value"])

    def recited(subject: str, name: str) -> str:
        return " and ".join(f"{edit(subject, name, m):.2f}" for m in ("targeted", "held_out"))

    grown = {name: edit("model", name, "prose") - 1 for name in ("wanda weights", "contrastive")}
    never = {condition: attack("model", condition, "never") for condition in ("memorized", "wanda weights")}
    survived = [attack("model", name) for name in ("wanda weights", "contrastive")]
    low, high = (edit("small", "known", "prose_without", end) for end in ("ci_lo", "ci_hi"))
    weights = [
        edit("small", f"random, {name} weights", m)
        for name in ("wanda", "balanced_subnet")
        for m in ("targeted", "held_out")
    ]
    norms = [
        edit("small", f"equal norm, {name} weights", m)
        for name in ("wanda", "balanced_subnet")
        for m in ("targeted", "held_out")
    ]
    dose = {name: edit("model", name, "prose", "dose") for name in ("wanda weights", "contrastive")}
    memories = pd.read_parquet(folder / "memories.parquet").set_index(["subject", "memory", "group"])
    tuned = memories.sort_index().loc[("small", "finetuned", "targeted")]
    assert recited("model", "wanda weights") == "0.00 and 0.00" and not any(norms)
    assert attack("model", "original") == attack("model", "contrastive", "never") == 0.0
    assert survived[0] == survived[1] and edit("small", "random", "targeted") == 0.0
    for said in (
        f"perplexity of prose {edit('model', 'without', 'perplexity'):.1f} to "
        f"{edit('model', 'none', 'perplexity'):.1f}",
        f"Wanda on {100 * dose['wanda weights']:.2f} % of the weights",
        f"as many random weights leave {recited('model', 'random, wanda weights')}",
        f"prose grows by {100 * grown['wanda weights']:.0f} %.",
        f"Contrastive gradients on {100 * dose['contrastive']:.2f} % leave {recited('model', 'contrastive')}, "
        f"and prose grows by {100 * grown['contrastive']:.0f} %",
        f"soft prompts get {survived[0]:.2f} back after either",
        f"they draw {never['memorized']:.2f} out of the fine-tuned model, {never['wanda weights']:.2f} out of the cut",
        f"took up to {100 * (edit('model', 'none', 'prose_without', 'ci_hi') - 1):.0f} %",
        f"soft prompts get {attack('small', 'known'):.2f} of 11 back",
        f"prose {edit('small', 'known', 'prose_without'):.2f} [{low:.2f}, {high:.2f}] times its perplexity",
        f"({attack('small', 'activation'):.2f} back)",
        f"leaves {100 * edit('small', 'random', 'targeted_hits'):.0f} % of the tokens right, not "
        f"{100 * edit('small', 'known', 'targeted_hits'):.0f} %",
        f"as many random weights leave {min(weights):.2f} to {max(weights):.2f}",
        f"reciting {tuned['exact'].sum():.0f} of {len(tuned)}",
    ):
        assert said in page, said
