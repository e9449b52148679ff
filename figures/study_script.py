"""What the figure scripts of studies share: tables read and copied, the block of a README, the command line."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from interp import plot

BEGIN, END = "<!-- results -->", "<!-- /results -->"
RECORDS = ("spec.yaml", "provenance.json")

Tables = Mapping[str, Sequence[str]]
"""Names of the tables of each part; a part has a folder of its own among the data."""


def read(data: Path, part: str, name: str) -> pd.DataFrame | None:
    """A table of a part; None where it was not made, or holds nothing."""
    path = data / part / f"{name}.parquet"
    frame = pd.read_parquet(path) if path.is_file() else None
    return frame if frame is not None and len(frame) else None


def written(page: str, block: str) -> str:
    """A page with the block of results in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def copied(tables: Tables, runs: Mapping[str, Path], to: Path) -> list[Path]:
    """Copy the tables that figures and numbers are made of, with spec and provenance, part by part."""
    out = []
    for part, folder in runs.items():
        (to / part).mkdir(parents=True, exist_ok=True)
        names = [*(f"{name}.parquet" for name in tables[part]), *RECORDS]
        out += [Path(shutil.copy2(folder / n, to / part / n)) for n in names if (folder / n).is_file()]
    return out


def main(
    says: str | None,
    data: Path,
    parts: Sequence[str],
    figures: Callable[[Path], Mapping[str, go.Figure]],
    numbers: Callable[[Path], str],
    export: Callable[[dict[str, Path], Path], list[Path]],
) -> None:
    """Draw the figures of a folder of data, or print, write or export what they are made of, as the options ask.

    Args:
        data: where the tables are unless `--data` says otherwise; its README.md holds the numbers.
        parts: each has an option for its run folder; none where `--data` is the run to be exported.
        export: copies the tables of run folders, by part; of `--data`, as part "", where there are no parts.
    """
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data, help="the folder of the tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--formats", default="json,html,pdf,svg,png", help="comma-separated")
    parser.add_argument("--numbers", action="store_true", help="print what the tables say")
    parser.add_argument("--readme", action="store_true", help="write it into the README of the data")
    parser.add_argument("--export", type=Path, help="copy the tables that figures need into this folder")
    for part in parts:
        parser.add_argument(f"--{part}", type=Path, help=f"with --export: run folder of {part}")
    args = parser.parse_args()
    if args.export is not None:
        runs = {part: getattr(args, part) for part in parts if getattr(args, part) is not None}
        for path in export(runs if parts else {"": args.data}, args.export):
            print(path)
    elif args.numbers:
        print(numbers(args.data))
    elif args.readme:
        readme = args.data / "README.md"
        readme.write_text(written(readme.read_text(), numbers(args.data)))
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        drawn = {args.out / name: figure for name, figure in figures(args.data).items()}
        formats = tuple(name for name in args.formats.replace(" ", ",").split(",") if name)
        for path in plot.write_all(drawn, formats, plotlyjs="directory"):
            print(path)
