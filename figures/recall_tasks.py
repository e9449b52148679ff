"""What smollm2 recalls of every task in a natural language, over ladders of sizes fixed beforehand.

    python figures/recall_tasks.py [--data figures/data/recall_tasks] [--out figures/build] [--formats png pdf]
    python figures/recall_tasks.py --numbers
    python figures/recall_tasks.py --readme
    python figures/recall_tasks.py --data runs/recall-smollm2 --export figures/data/recall_tasks

Reads the tables of `interp tasks run` and nothing else. `--readme` writes the numbers into the README beside the data,
which a test compares with it. `--export` copies the tables, with spec and provenance, out of the folder of a run.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from study_script import copied, main, read

from interp.plot.text import count, listed, number, percent
from interp.report import recall
from interp.report.tables import Tables

DATA = Path(__file__).parent / "data" / "recall_tasks"

TABLES = {"": ("recall", "recall_curves", "recall_ages")}
"""Tables that figures and numbers come from."""


def found(data: Path) -> Tables:
    """The tables of a folder, as far as they are there."""
    return Tables(data, **{name: read(data, "", name) for name in TABLES[""]})


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by its name: one a family of tasks, one an axis of curves, one of ages."""
    charts = recall.charts(found(data))
    return {f"recall-tasks-{chart.name.removeprefix('recall-')}": chart.draw("double") for chart in charts}


def numbers(data: Path = DATA) -> str:
    """What the tables say, as Markdown: every size, those at chance marked."""
    tables = found(data)
    rows = recall.rows(tables)
    if not rows:
        return ""
    lines = [
        "| task | size | n | choice | exact answer | logits, answer less foil | a guess | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        told = [
            row[name] for name in ("task", "size", "n", "choice", "accuracy", "difference", "guess", "status")
        ]
        lines.append("| " + " | ".join(str(value).replace("|", "\\|") for value in told) + " |")
    return "\n\n".join([part for part in (_summary(tables), "\n".join(lines), _ages(tables)) if part])


def _ages(tables: Tables) -> str:
    """Of values that were updated: how often the one that holds is answered, the first one, and the commonest."""
    table = tables.recall_ages
    if table is None:
        return ""
    lines = [
        "Where a value was updated, by age (0: the one that holds):",
        "",
        "| values of a key | n | the one that holds | the first one | commonest age | its share | a guess |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for updates, rows in table.groupby("updates"):
        by = rows.set_index("age")
        most = by["share"].idxmax()
        told = [_share(by.loc[age]) for age in (0, by.index.max(), most)]
        guess = number(by["chance"].iloc[0], 3)
        cells = [updates, int(rows["n"].max()), *told[:2], most, told[2], guess]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _share(row: pd.Series) -> str:
    return f"{percent(row['share'])} [{percent(row['ci_lo'])}, {percent(row['ci_hi'])}]"


def _summary(tables: Tables) -> str:
    assert tables.recall is not None
    status = tables.recall["status"]
    above = [
        f"{(status == s).sum()} {said}"
        for s, said in ((recall.OK, "above chance"), ("at chance", "at chance"))
    ]
    if (status == recall.NOT_ASKED).any():
        above.append(f"{(status == recall.NOT_ASKED).sum()} not asked")
    first = tables.recall.drop_duplicates("task")
    never = first[first["status"] == "at chance"]["task"].tolist()
    told = f" At chance already at the first size: {listed(f'`{name}`' for name in never)}." if never else ""
    # The page names the model by its spec; here it stands in the heading.
    sentence = recall.sentence(tables).replace(tables.model, "The model", 1)
    return f"{sentence} Of {count(len(status), 'size')}, {listed(above)}.{told}"


def export(runs: dict[str, Path], to: Path) -> list[Path]:
    """Copy the tables that figures and numbers are made of, with spec and provenance."""
    return copied(TABLES, runs, to)


if __name__ == "__main__":
    main(__doc__, DATA, (), figures, numbers, export)
