"""The page of a run, as text: computed headlines, escaping, absences, policy."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from interp.errors import BrokenData, MissingResource
from interp.report import render
from interp.report.facts import top_layers
from interp.report.figures import attention_table, charts, effect_table, score_table, write_figures
from interp.report.headline import facts, sentence
from interp.report.prompt import parts
from interp.report.sections import costs, cuts, files, scoring, top_channels, top_heads
from interp.report.tables import read
from tests.plot.frames import (
    HOSTILE,
    deleted_frame,
    effects_frame,
    fact_effects_frame,
    fact_layers_frame,
    rows_json,
    scores_frame,
    write_run,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"))
    render(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def body(page: str) -> str:
    """The page without its scripts and data."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body(page))).split())


def minus(text: str) -> str:
    return text.replace("-", "\u2212")


def cut_row(task: str = "niah_words", scope: str = "all", k: int = 10, metric: str = "accuracy") -> pd.Series:
    rows = effects_frame()
    at = (rows["task"] == task) & (rows["scope"] == scope) & (rows["k"] == k) & (rows["metric"] == metric)
    return rows[at & (rows["condition"] == "cut")].iloc[0]


def with_effects(folder: Path, effects: pd.DataFrame) -> Path:
    write_run(folder)
    effects.to_parquet(folder / "effects.parquet")
    return folder


def test_the_sentence_is_computed_from_the_tables(page: str) -> None:
    cut, scores = cut_row(), scores_frame().query("method == 'copy'")
    hits = scores[scores["score"] >= 0.1]
    draws = effects_frame().query(
        "task == 'niah_words' and scope == 'all' and k == 10 and metric == 'accuracy' and condition == 'control'"
    )
    said = words(page)
    assert (
        "Cutting the 10 strongest retrieval heads of synthetic-30x9 (mean ablation, at every position) takes accuracy "
        f"on niah_words from 0.94 to {cut['value']:.2f}"
    ) in said
    interval = minus(f"{cut['delta']:.2f}, 95% interval {cut['ci_lo']:.2f} to {cut['ci_hi']:.2f}")
    assert f"({interval})" in said
    assert f"leaves it at {draws['value'].mean():.2f} (mean of 5 draws)" in said
    layers = f"layers {hits['layer'].min()} to {hits['layer'].max()}"
    assert (
        f"Of its 270 heads, {len(hits)} ({100 * len(hits) / 270:.1f}%) score 0.1 or more, in {layers}" in said
    )


def test_headline_numbers(run: Path) -> None:
    told = {fact.label: fact.value for fact in facts(read(run))}
    prose = cut_row("english prose", metric="nll")
    instances = pd.read_parquet(run / "instances.parquet")
    assert told["heads score 0.1 or more"] == "15 of 270"
    assert told["accuracy on niah_words, 10 cut"] == f"0.94 \u2192 {cut_row()['value']:.2f}"
    assert told["perplexity on english prose"] == f"\u00d7 {2.718281828 ** prose['delta']:.2f}"
    assert told["scoring prompts accepted"] == f"{instances['accepted'].sum()} of 64"


def test_deleted_channels_are_headlined_beside_their_controls(run: Path) -> None:
    rows = deleted_frame().query("metric == 'accuracy'")
    cut, controls = (
        rows[rows["condition"] == "cut"]["value"].item(),
        rows[rows["condition"] == "control"]["value"],
    )
    (fact,) = [f for f in facts(read(run)) if "deleted" in f.label]
    assert fact.value == f"0.94 \u2192 {cut:.2f}"
    assert fact.label == "accuracy on niah_words, 46 components that they read deleted"
    assert fact.note == f"as many others of the same writers: {controls.mean():.2f}"


def test_cut_fact_mlps_are_headlined_beside_windows_that_write_as_much(run: Path, page: str) -> None:
    rows = fact_effects_frame().query(
        "metric == 'accuracy' and mechanism == 'fact MLPs' and task == 'held-out facts'"
    )
    cut, controls = (rows[rows["condition"] == c]["value"] for c in ("cut", "control"))
    (fact,) = [f for f in facts(read(run)) if "fact MLP" in f.label]
    assert fact.value == f"0.94 \u2192 {cut.item():.2f}"
    assert fact.label == "accuracy on known facts, 3 fact MLPs cut"
    assert fact.note == f"windows that write as much: {controls.mean():.2f}"
    for name in ("fact-census", "fact-profile", "fact-cut", "fact-neuron-cut"):
        assert f'id="{name}"' in page


def test_layers_that_are_vital_for_all_are_told_from_stores_of_facts(run: Path) -> None:
    rows = top_layers(read(run))
    frame = fact_layers_frame()
    best = frame.sort_values("score", ascending=False)["component"].head(5).tolist()
    assert rows[0]["component"] == "M8" and [r["component"] for r in rows[:5]] == best
    assert [r["component"] for r in rows[5:]] == ["M0, vital for all", "M11, vital for all"]
    assert rows[5]["off_loss"] == "0.520" and rows[0]["share"] == "42.9%"


def test_the_channels_of_the_best_heads_are_listed_by_their_rank(run: Path) -> None:
    tables = read(run)
    rows = top_channels(tables)
    edges = tables.channels
    assert edges is not None and rows
    heads = scores_frame().query("method == 'copy'").nlargest(10, "score")
    names = {*heads["component"], *(f"L{r.layer}KV{r.kv_head}" for r in heads.itertuples())}
    own = edges[(edges["channel"] >= 0) & edges["reader"].isin(names)].sort_values(["channel", "place"])
    assert [r["reader"] for r in rows] == own.drop_duplicates("channel")["reader"].tolist()[:12]
    first = own[own["channel"] == own["channel"].min()]
    assert rows[0]["components"] == [f"{r.writer}.{r.component}" for r in first.itertuples()]
    assert rows[0]["q"] == "< 10\u207b\u00b3\u2070"


def test_a_dose_of_deleted_channels_is_drawn_where_there_are_several(run: Path, tmp_path: Path) -> None:
    assert "channel-doses" not in {chart.name for chart in charts(read(run))}
    folder = write_run(tmp_path / "r")
    deleted_frame(ks=(10, 46)).to_parquet(folder / "channel_effects.parquet")
    assert "channel-doses" in {chart.name for chart in charts(read(folder))}


def test_an_unclear_effect_is_worded_as_one(tmp_path: Path) -> None:
    effects = effects_frame()
    cut = effects["condition"] == "cut"
    clean = effects["value"] - effects["delta"]
    effects = effects.assign(
        delta=effects["delta"].where(~cut, -0.01), ci_lo=effects["ci_lo"].where(~cut, -0.05),
        ci_hi=effects["ci_hi"].where(~cut, 0.03), value=effects["value"].where(~cut, clean - 0.01),
    )  # fmt: skip
    said = sentence(read(with_effects(tmp_path / "r", effects)))
    assert "does not clearly change accuracy on niah_words: 0.94 before, 0.93 after" in said
    assert "takes" not in said


def test_at_chance_no_effect_is_headlined(tmp_path: Path) -> None:
    folder = with_effects(tmp_path / "r", effects_frame().assign(status="at chance"))
    deleted_frame().assign(status="at chance").to_parquet(folder / "channel_effects.parquet")
    fact_effects_frame().assign(status="at chance").to_parquet(folder / "fact_effects.parquet")
    tables = read(folder)
    assert "at chance on every target task, so no effect of a cut is reported" in sentence(tables)
    assert not [f for f in facts(tables) if "\u2192" in f.value]


def test_no_hit_is_said_plainly(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", without=("effects",))
    scores_frame().assign(score=0.01).to_parquet(folder / "scores.parquet")
    assert sentence(read(folder)) == (
        "Of the 270 heads of synthetic-30x9, 0 (0.0%) score 0.1 or more: by this measure it has no retrieval head."
    )


def test_the_size_of_the_main_cut_comes_from_the_spec(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    (folder / "spec.yaml").write_text("model: m\ntop: 5\n")
    assert "the 5 strongest retrieval heads of m" in sentence(read(folder))


ABSENT = {
    "scores": ("Layer by head map and ranking: left out, the run has no scores.parquet", 'id="heads"'),
    "effects": ("Dose curves, effect matrix and controls: left out, the run has no effects", 'id="matrix"'),
    "channels": ("Graph of channels: left out, the run has no channels.parquet", 'id="channels"'),
    "channel_spectrum": (
        "Spectrum of components: left out, the run has no channel_spectrum",
        'id="spectrum"',
    ),
    "channel_effects": (
        "Effect of deleted channels: left out, the run has no channel_eff",
        'id="channel-cut"',
    ),
    "fact_census": (
        "Facts that the model knows: left out, the run has no fact_census",
        'id="fact-census"',
    ),
    "fact_profile": ("Causal profile of facts: left out, the run has no fact_prof", 'id="fact-profile"'),
    "fact_effects": ("Effect of cut fact MLPs: left out, the run has no fact_eff", 'id="fact-cut"'),
    "patch": ("Activation patching: left out, the run has no patch.parquet", 'id="patching"'),
    "rows": ("Example prompt and attention rows: left out, the run has no rows.json", 'id="prompt"'),
    "instances": ("Scoring diagnostics: left out, the run has no instances.parquet", 'id="scoring"'),
    "spec": ("The spec is left out: the run has no spec.yaml", "Spec of the run"),
    "provenance": ("Provenance is left out", "Versions, weights"),
}


@pytest.mark.parametrize(
    "without",
    [
        ("scores", "rows", "spec", "channels", "fact_profile"),
        (
            "effects",
            "patch",
            "instances",
            "provenance",
            "channel_spectrum",
            "channel_effects",
            "fact_census",
            "fact_effects",
        ),
    ],
    ids=" ".join,
)
def test_absent_tables_are_said(tmp_path: Path, page: str, without: tuple[str, ...]) -> None:
    less = render(write_run(tmp_path / "r", without=without)).read_text(encoding="utf-8")
    for name, (line, mark) in ABSENT.items():
        assert mark in page and line not in words(page)
        assert (mark not in less) == (name in without)
        assert (line in words(less)) == (name in without)


def test_a_malformed_table_costs_only_its_own_figures(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", without=("rows", "patch"))
    scores_frame().drop(columns=["se"]).to_parquet(folder / "scores.parquet")
    text = render(folder).read_text(encoding="utf-8")
    assert "left out: head_map: missing columns se" in words(text)
    assert 'id="matrix"' in text


def test_an_empty_patch_table_counts_as_absent(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", without=("rows", "effects"))
    pd.DataFrame().to_parquet(folder / "patch.parquet")
    assert "Activation patching: left out" in words(render(folder).read_text(encoding="utf-8"))


def test_rows_that_do_not_fit_are_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", without=("effects", "patch"))
    (folder / "rows.json").write_text(json.dumps({"tokens": ["a"]}))
    assert "rows.json: it must hold 'tokens' and 'heads'" in words(render(folder).read_text(encoding="utf-8"))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="there is no run folder"):
        render(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingResource, match="holds no run"):
        render(tmp_path / "empty")
    folder = write_run(tmp_path / "r")
    (folder / "scores.parquet").write_bytes(b"not a table")
    with pytest.raises(BrokenData, match=r"scores\.parquet: not a readable Parquet table"):
        render(folder)
    folder = write_run(tmp_path / "s")
    (folder / "spec.yaml").write_text("a: [1")
    with pytest.raises(BrokenData, match=r"spec\.yaml: not valid YAML"):
        render(folder)
    folder = write_run(tmp_path / "t", without=("rows", "effects", "patch", "instances"))
    (folder / "report.html").mkdir()
    with pytest.raises(MissingResource, match="give a folder that can be written"):
        render(folder)
    assert sorted(p.name for p in folder.iterdir() if "partial" in p.name) == []


def test_untrusted_text_is_text_everywhere(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3, (
        "the prompt, the spec, the provenance, an output"
    )
    assert len(re.findall(r"<script\b", page)) == 4


def test_hostile_names_of_model_task_and_component(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", without=("rows", "patch", "instances"))
    (folder / "spec.yaml").write_text(f"model: '{HOSTILE}'\ntop: 10\n")
    effects = effects_frame()
    effects.assign(task=effects["task"] + HOSTILE, mechanism=HOSTILE).to_parquet(folder / "effects.parquet")
    text = render(folder).read_text(encoding="utf-8")
    assert HOSTILE not in text and len(re.findall(r"<script\b", text)) == 4


def test_the_policy_names_exactly_the_scripts_of_the_page(page: str) -> None:
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == 2
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy and "http" not in policy


def test_nothing_points_outside(page: str) -> None:
    links = re.findall(r'\b(?:src|href|action|srcset)="([^"]*)"', body(page))
    assert links and not [link for link in links if re.match(r"[a-z]+:|//|/", link)]
    assert {"scores.parquet", "effects.parquet", "rows.json", "spec.yaml"} <= set(links)


def test_two_renders_are_the_same_bytes(run: Path, page: str) -> None:
    assert render(run).read_text(encoding="utf-8") == page


def test_every_figure_has_words_and_numbers(page: str) -> None:
    figures = re.findall(r"<figure\b.*?</figure>", page, flags=re.S)
    assert len(figures) == 19
    for figure in figures:
        assert len(re.search(r'role="img" aria-label="([^"]*)"', figure)[1]) > 40  # type: ignore[index]
        assert "<h3" in figure and "<tbody><tr>" in figure and 'class="explain"' in figure


def test_tables_of_heads() -> None:
    scores = scores_frame()
    table = score_table(scores, 5)
    own = scores[scores["method"] == "copy"].sort_values("score", ascending=False).head(5)
    assert table["copy"].tolist() == own["score"].tolist()
    other = scores[scores["method"] == "copy_position"].set_index("component")["score"]
    assert table["copy_position"].tolist() == [other[c] for c in table["component"]]


def test_top_heads_show_their_group(run: Path) -> None:
    tables = read(run)
    told = top_heads(tables)
    assert told is not None and tables.groups is not None
    row = told["rows"][0]
    layer = int(row["component"][1:].split("H")[0])
    mean = tables.groups.query(f"layer == {layer} and kv_head == {row['kv']} and method == 'copy'")[
        "mean"
    ].item()
    assert row["group"] == f"{mean:.2f}"


def test_effect_table_has_the_mean_of_the_controls() -> None:
    effects = effects_frame()
    table = effect_table(effects, 10)
    row = table[(table["task"] == "facts") & (table["scope"] == "answer")].iloc[0]
    draws = effects.query("task == 'facts' and scope == 'answer' and k == 10 and metric == 'accuracy'")
    assert row["controls"] == pytest.approx(draws.query("condition == 'control'")["delta"].mean())
    assert row["draws"] == 20 and row["clean"] == pytest.approx(0.81)


def test_attention_table_sums_by_role() -> None:
    prompt = rows_json()
    best = next(iter(prompt["heads"]))
    table = attention_table(prompt, best)
    row = prompt["heads"][best][1]
    value = sum(v for v, role in zip(row, prompt["roles"], strict=False) if role == "value")
    assert table["value"].iloc[1] == pytest.approx(value)
    assert table["predicts"].tolist() == prompt["answer"]


def test_what_was_cut_is_listed_exactly(run: Path, page: str) -> None:
    told = cuts(read(run))
    assert [(c["mode"], c["scope"], c["reference"]) for c in told] == [
        ("mean", "answer", "pooled niah_words"), ("mean", "all", "pooled niah_words"),
    ]  # fmt: skip
    ranked = scores_frame().query("method == 'copy'").sort_values("score", ascending=False)["component"]
    assert told[0]["components"] == ranked.head(20).tolist()
    assert told[0]["draws"] == "20" and told[1]["draws"] == "5"
    assert all(f"<code>{name}</code>" in page for name in ranked.head(20))


def test_costs_are_those_of_the_main_cut(run: Path) -> None:
    told = costs(read(run))
    assert {row["how"].split(" cut")[0] for row in told} == {"10"}
    prose = next(row for row in told if row["task"] == "english prose")
    assert prose["change"] == f"+{cut_row('english prose', metric='nll')['delta']:.3f}"
    assert {row["change"] for row in told if row["task"] == "arithmetic"} == {"at chance"}


def test_scoring_counts(run: Path) -> None:
    tables = read(run)
    told = scoring(tables)
    assert told is not None and tables.instances is not None
    numbers = dict(told["numbers"])
    rejected = int((~tables.instances["accepted"]).sum())
    assert numbers["rejected"] == str(rejected)
    assert len(told["rejected"]) + told["rest"] == rejected


def test_the_prompt_keeps_every_token_in_order() -> None:
    prompt = rows_json()
    told = parts(prompt)
    assert [t.index for p in told for t in p.tokens] == list(range(len(prompt["tokens"])))
    folded = {t.index for p in told if p.folded for t in p.tokens}
    assert folded and not folded & {i for i, role in enumerate(prompt["roles"]) if role}


def test_figures_into_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    paths = write_figures(folder, static=False, width="single")
    stems = {p.stem for p in paths}
    assert stems == {
        "heads", "ranking", "attention", "dose-answer", "dose-all", "matrix", "controls", "patching",
        "instances", "channels", "spectrum", "channel-cut", "fact-census", "fact-profile", "fact-cut",
        "fact-neuron-cut",
    }  # fmt: skip
    assert {p.suffix for p in paths} == {".json", ".html"}
    assert (folder / "figures" / "plotly.min.js").exists()
    assert tuple(path for path, _ in files(folder) if path.endswith(("heads.html", "matrix.html"))) == (
        "figures/heads.html",
        "figures/matrix.html",
    )


def test_static_figures_asked_for_need_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    with pytest.raises(MissingResource, match="no executable browser"):
        write_figures(write_run(tmp_path / "r", without=("rows", "patch", "effects")), static=True)


def test_charts_of_a_run_of_two_scopes(run: Path) -> None:
    named = [chart.name for chart in charts(read(run)) if not chart.page_only]
    assert named[0] == "heads", "the map comes first"
    assert {"dose-answer", "dose-all"} <= set(named)
