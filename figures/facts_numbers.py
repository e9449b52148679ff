"""What the tables of the fact-recall study say, in tables of Markdown: `facts_study.py --numbers` and `--readme`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from study_script import read

from interp.plot.text import listed, number, percent

METRIC = "probability"


def setting(name: str) -> str:
    """What stands in front of the question, in words."""
    if name in ("closed", "elsewhere"):
        return {"closed": "no context", "elsewhere": "about another subject"}[name]
    amount, *rest = name.split(" ")
    against, beside = amount.split(":")
    words = f"{against} against" + (f", {beside} for" if beside != "0" else "")
    if rest and rest[0] in ("memory", "counter"):
        words += "; for first" if rest[0] == "memory" else "; against first"
    return words + "".join(f", {r[1:]} about others" for r in rest if r.startswith("+"))


def judged(rows: pd.DataFrame) -> str:
    """The first metric that is there above chance."""
    ok = rows[rows["status"] != "at chance"] if "status" in rows else rows
    return next((m for m in ("choice", "accuracy", "pair", "margin") if (ok["metric"] == m).any()), "")


def numbers(data: Path) -> str:
    """What the tables say, as the README beside the data has it."""
    blocks = (
        _known, _effects, _findings, _primary, _losses, _stores, _scores, _localised, _written_back, _edit_findings,
        _believed, _moved, _conflict_findings, _floors, _gaps, _prefaces, _tuned, _drifted,
    )  # fmt: skip
    return "\n\n".join(text for block in blocks if (text := block(data)))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; empty where it has no rows."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    head = list(head)
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *body]) if body else ""


def ends(value: float, lo: float, hi: float, digits: int = 2) -> str:
    """A number with its interval."""
    if not (np.isfinite(lo) and np.isfinite(hi)):
        return number(value, digits)
    return f"{number(value, digits)} [{number(lo, digits)}, {number(hi, digits)}]"


def _known(data: Path) -> str:
    known, kinds = read(data, "facts", "known"), read(data, "facts", "kinds")
    if known is None:
        return ""
    parts = []
    for shots, own in known.groupby("shots", sort=False):
        each, whole = own[own["relation"] != "all"], own[own["relation"] == "all"]
        told = "" if whole.empty else f", {percent(whole['accuracy'].iloc[0], digits=0)}"
        above = int(each["above"].sum()) if "above" in each else len(each)
        parts.append(
            f"with {int(shots)} solved examples {int(each['known'].sum()):,} of {int(each['asked'].sum()):,} "
            f"questions{told}, above chance in {above} of {len(each)} relations"
        )
    out = f"Answered right: {'; '.join(parts)}."
    if kinds is not None and (kinds["relation"] == "all").any():
        r = kinds[kinds["relation"] == "all"].iloc[0]
        out += (
            f" Of {int(r['known']):,} right predictions in all wordings {percent(r['pure'], digits=0)} are exact "
            f"recall by the rules, and {percent(r['biased'], digits=0)} may rest on a heuristic."
        )
    return out


def _effects(data: Path) -> str:
    peaks, effects = read(data, "facts", "peaks"), read(data, "facts", "effects")
    if peaks is None or effects is None:
        return ""
    total = effects[effects["metric"] == METRIC].set_index(["scenario", "way"])["te"]
    rows = []
    own = peaks[(peaks["metric"] == METRIC) & (peaks["way"] == "wide") & (peaks["kind"] == "mlp_out")]
    for scenario, part in own.groupby("scenario", sort=False):
        by = part.set_index("place")
        cells = [
            f"{ends(r['aie'], r['aie_lo'], r['aie_hi'], 3)} at layer {int(r['layer'])}"
            for place in ("last subject", "last")
            for r in ([by.loc[place]] if place in by.index else [])
        ]
        rows.append([str(scenario), number(float(total.get((scenario, "wide"), np.nan)), 3), *cells])
    head = [
        "MLP windows, another subject",
        "total effect",
        "highest at the subject's last token",
        "at the last token",
    ]
    return table(head, [r for r in rows if len(r) == len(head)])


def _findings(data: Path) -> str:
    found = read(data, "facts", "findings")
    if found is None:
        return ""
    own = found[found["main"].astype(bool)]
    return table(
        ["published finding", "statistic (above zero: holds)", "value, 95 % interval", "on smollm2", "ways that agree"],
        [
            [r["finding"], r["statistic"], ends(r["value"], r["lo"], r["hi"], 3), r["verdict"],
             f"{int(r['alike'])} of {int(r['ways'])}"]
            for r in own.to_dict("records")
        ],
    )  # fmt: skip


def _primary(data: Path) -> str:
    gaps = read(data, "dissociation", "dissociation")
    if gaps is None:
        return ""
    own = gaps[(gaps["metric"] == METRIC) & (gaps["scope"] == "content")]
    own = own[own["fact_task"].isin(["held", "other"])]
    return table(
        ["cut against retrieval heads", "facts / context", "facts less context", "context less facts", "interaction",
         ""],
        [
            [f"**{r['mechanism']}**" if r["primary"] else r["mechanism"], f"{r['fact_task']} / {r['context_task']}",
             *(ends(r[c], r[f"{c}_lo"], r[f"{c}_hi"]) for c in ("mlp_gap", "heads_gap", "interaction")), r["verdict"]]
            for r in own.to_dict("records")
        ],
    )  # fmt: skip


def _losses(data: Path) -> str:
    effects = read(data, "dissociation", "effects")
    if effects is None:
        return ""
    own = effects[
        (effects["scope"] == "content") & (effects["metric"] == METRIC) & (effects["condition"] == "cut")
    ]
    tasks = list(dict.fromkeys(own["task"]))
    rows = []
    for mechanism, part in own.groupby("mechanism", sort=False):
        by = part.set_index("task")
        rows.append([str(mechanism), *(_lost(by.loc[t]) if t in by.index else "" for t in tasks)])
    return table(["share of the probability lost (matched controls)", *tasks], rows)


def _lost(r: pd.Series) -> str:
    return r["status"] if r["status"] != "ok" else f"{number(r['loss'])} ({number(r['control_mean'])})"


def _stores(data: Path) -> str:
    vital = read(data, "dissociation", "vital")
    if vital is None:
        return ""
    own = vital[(vital["scope"] == "content") & (vital["metric"] == METRIC)].sort_values("rank")
    passing = [f"{int(n)}" for n in own[own["passes"]]["layer"]]
    lines = table(
        ["layer", "AIE", "held-out facts lost", "worst other task", "its loss", "difference", ""],
        [
            [str(int(r["layer"])), ends(r["aie"], r["aie_lo"], r["aie_hi"], 3), number(r["fact_loss"]), r["off_task"],
             number(r["off_loss"]), ends(r["gap"], r["gap_lo"], r["gap_hi"]), r["verdict"]]
            for r in own.head(6).to_dict("records")
        ],
    )  # fmt: skip
    return f"Layers that pass as stores of facts: {listed(passing) if passing else 'none'}.\n\n{lines}"


def _scores(data: Path) -> str:
    scores = read(data, "editing", "scoreboard")
    if scores is None:
        return ""
    measures = [
        m
        for m in ("ES", "PS", "NS", "NS same", "NS other", "S", "ET", "PT", "NT", "EM", "PM", "NM")
        if (scores["measure"] == m).any()
    ]
    rows = []
    first = scores[scores["state"] == "before"].drop_duplicates("measure").set_index("measure")
    if len(first):
        rows.append(["before", *(_score(first, m) for m in measures)])
    after = scores[scores["state"] == "after"]
    for (method, n), own in after.groupby(["method", "at_once"], sort=False):
        name = (
            f"sum of {int(n)} edits by ROME" if method == "rome together" else f"{method}, {int(n)} at once"
        )
        rows.append([name, *(_score(own.set_index("measure"), m) for m in measures)])
    out = table(["edits", *measures], rows)
    if "NS same" in measures:
        out += (
            "\n\nNS same: neighbours with the edited fact's object, as all of CounterFact's are; NS other: the rest, "
            "which NS and S count too, so that these do not compare with published ones."
        )
    return out


def _score(own: pd.DataFrame, measure: str) -> str:
    return ends(*(own.loc[measure, c] for c in ("value", "ci_lo", "ci_hi"))) if measure in own.index else ""


def _localised(data: Path) -> str:
    own = read(data, "editing", "localisation")
    if own is None:
        return ""
    return table(
        ["trace", "corruption", "metric", "prompts", "\u03c1 over all", "within a fact (mean)", "R\u00b2 of layers",
         "gain by the trace, 95 % interval", "p of the gain"],
        [
            [r["trace"], r["corruption"], r["metric"], r["kind"], number(r["rho"]),
             number(r["within"]), number(r["r2_layer"]), ends(r["gain"], r["gain_lo"], r["gain_hi"], 3),
             number(r["p"], 3)]
            for r in own[own["metric"] == METRIC].to_dict("records")
        ],
    )  # fmt: skip


def _written_back(data: Path) -> str:
    edits, drift = read(data, "editing", "edits"), read(data, "editing", "drift")
    if edits is None:
        return ""
    restored = edits["restored"].dropna().astype(bool)
    out = f"Weights have the bits that they had before after {int(restored.sum())} of {len(restored)} edits"
    if "bytes" in edits:
        out += f"; the file of one takes {number(edits['bytes'].median() / 1024, 0)} KiB (median)"
    if drift is not None:
        change = (
            (drift["nll_after"] - drift["nll_before"]).groupby([drift["method"], drift["at_once"]]).mean()
        )
        told = ", ".join(f"{m} {n} at once {number(v, 4)}" for (m, n), v in change.items())
        out += f". Loss on prose, nats a token: {told}"
    return out + "."


def _edit_findings(data: Path) -> str:
    own = read(data, "editing", "findings")
    if own is None:
        return ""
    # What a trace says of edits stands in a table of its own.
    own = own[~own["finding"].str.startswith("a trace says")]
    return table(
        ["finding", "statistic", "value, 95 % interval", "n", "on smollm2"],
        [
            [r["finding"], r["statistic"], ends(r["value"], r["ci_lo"], r["ci_hi"], 3), str(int(r["n"])), r["verdict"]]
            for r in own.to_dict("records")
        ],
    )  # fmt: skip


def _believed(data: Path) -> str:
    ratios = read(data, "conflict", "ratios")
    if ratios is None:
        return ""
    return table(
        ["statements for and against what the memory says",
         "from memory", "from the context", "neither", "memorisation ratio", "facts"],
        [
            [setting(r["setting"]), *(percent(r[c], digits=0) for c in ("f_memory", "f_context", "f_other")),
             ends(r["ratio"], r["ci_lo"], r["ci_hi"]), str(int(r["n"]))]
            for r in ratios[ratios["by"] == "all"].to_dict("records")
        ],
    )  # fmt: skip


def _moved(data: Path) -> str:
    """The largest move of each family beside its controls, on the share of answers from memory."""
    over = read(data, "conflict", "over_controls")
    if over is None:
        return ""
    own = over[(over["task"] == "conflict") & (over["statistic"] == "memory")]
    rows = []
    for (family, kind), part in own.groupby(["family", "control"], sort=False):
        r = part.loc[part["d_move"].abs().idxmax()]
        size = f"{int(r['k'])}" + (f", \u00d7 {r['factor']:g}" if np.isfinite(r["factor"]) else "")
        rows.append([
            str(family), size, str(r["scope"]), number(r["d_move"]), f"{kind}: {number(r['d_control'])}",
            ends(r["value"], r["ci_lo"], r["ci_hi"]),
        ])  # fmt: skip
    return table(
        ["largest move", "heads or layers", "at", "share from memory, change", "controls", "beyond controls"],
        rows,
    )


def _conflict_findings(data: Path) -> str:
    own = read(data, "conflict", "findings")
    if own is None:
        return ""
    return table(
        ["published finding", "statistic", "value, 95 % interval", "on smollm2"],
        [
            [r["finding"], r["statistic"], ends(r["value"], r["ci_lo"], r["ci_hi"]), r["verdict"]]
            for r in own.to_dict("records")
        ],
    )  # fmt: skip


def _floors(data: Path) -> str:
    own = read(data, "prior", "tasks")
    if own is None:
        return ""
    rows = []
    for r in own.to_dict("records"):
        asked = r["status"] != "not asked"
        value = ends(r[r["judged"]], r["ci_lo"], r["ci_hi"]) if asked else ""
        rows.append([
            r["task"], r["settings"], f"{r['judged']} {value}" if asked else "", number(r["chance"]) if asked else "",
            "taken" if r["taken"] else r["status"],
        ])  # fmt: skip
    return table(["task", "setting", "right, 95 % interval", "chance", ""], rows)


def _gaps(data: Path) -> str:
    own = read(data, "prior", "gaps")
    if own is None:
        return ""
    return table(
        ["task", "metric", "likeliest less unlikeliest third", "\u03c1 of errors and prior",
         "among equal lengths", "p"],
        [
            [r["task"], r["metric"], ends(r["gap"], r["gap_lo"], r["gap_hi"]), number(r["rho"]),
             number(r["rho_within"]), number(r["p_within"], 4)]
            for r in own[own["status"] == "ok"].to_dict("records")
        ],
    )  # fmt: skip


def _prefaces(data: Path) -> str:
    own = read(data, "prior", "prompts_contrast")
    if own is None:
        return ""
    rows = own[(own["metric"] == judged(own)) & (own.get("status", "ok") != "at chance")]
    return table(
        ["asked not to rely on priors, against other prefaces", "answers", "change, 95 % interval"],
        [
            [f"{r['task']}, {r['metric']}", r["prior"], ends(r["delta"], r["ci_lo"], r["ci_hi"])]
            for r in rows.to_dict("records")
        ],
    )


def _tuned(data: Path) -> str:
    own, arms = read(data, "prior", "tuning_contrast"), read(data, "prior", "arms")
    if own is None:
        return ""
    rows = own[(own["metric"] == judged(own)) & (own.get("status", "ok") != "at chance")]
    out = table(
        ["tuned layers, held-out answers", "answers", "chosen", "random", "chosen less random, 95 % interval",
         "random runs below"],
        [
            [f"{r['task']}, {r['metric']}", r["prior"], number(r["chosen"]), number(r["random"]),
             ends(r["delta"], r["ci_lo"], r["ci_hi"]), percent(r["beaten"], digits=0)]
            for r in rows.to_dict("records")
        ],
    )  # fmt: skip
    if arms is not None:
        restored = arms["restored"].astype(bool)
        out += f"\n\nWeights have the bits that they had before after {int(restored.sum())} of {len(restored)} tunings."
    return out


def _drifted(data: Path) -> str:
    own = read(data, "prior", "drift")
    if own is None:
        return ""
    nll = own[own["metric"] == "nll"]
    tasks = list(dict.fromkeys(nll["task"]))
    rows = []
    for kind, part in nll.groupby("kind", sort=False):
        by = part.groupby("task")["delta"].mean()
        rows.append([str(kind), *(number(by.get(t, np.nan), 3) for t in tasks)])
    return table(["loss elsewhere, nats a token", *tasks], rows)
