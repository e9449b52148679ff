"""`interp compare-heads`: do two lists of heads name the same heads?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.console import Json, emit, say

_SHOWN = 10


def compare_heads(
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="A head list: .json, .tsv, .yaml, .parquet, .csv, or a run folder."),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    top: Annotated[
        list[int] | None,
        typer.Option("--top", min=1, help="Size of the sets; repeatable. Default 5, 10, 20, 50."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Compare also the heads that score at least this.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Score of a table or run that is compared: NAME, or NAME_OF_A,NAME_OF_B."),
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, help="KV heads a layer, to compare KV groups too.")
    ] = None,
    format_a: Annotated[str | None, typer.Option(help="Format of A, where its name does not say.")] = None,
    format_b: Annotated[str | None, typer.Option(help="Format of B, where its name does not say.")] = None,
    relative_depth: Annotated[
        bool,
        typer.Option(
            "--relative-depth", help="Compare where the best 5 % lie, for models that differ in shape."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    json: Json = False,
) -> None:
    """Compare two lists of heads: overlap beside what chance gives, and rank correlation."""
    from interp.locate.compare import compare, compare_depth
    from interp.locate.interop import read_heads

    parts = method.split(",") if method else []
    chosen = (parts[0], parts[1]) if len(parts) == 2 else method
    sides = read_heads(a, format_a), read_heads(b, format_b)
    if relative_depth:
        emit(compare_depth(*sides, method=chosen, seed=seed), json)
        return
    found = compare(*sides, top=top, threshold=threshold, method=chosen, kv_heads=kv_heads, seed=seed)
    if json:
        emit(found.as_dict(), json)
        return
    shown = found.frame.assign(
        value=[f"{v:.3f}" for v in found.frame["value"]],
        chance=[_pair(e, x) for e, x in zip(found.frame["expected"], found.frame["p"], strict=True)],
        in_layers=[
            _pair(e, x) for e, x in zip(found.frame["expected_layers"], found.frame["p_layers"], strict=True)
        ],
        sizes=[_sizes(row) for row in found.frame.itertuples()],
    )
    columns = ["unit", "measure", "set", "value", "sizes", "chance", "in_layers", "of_ceiling"]
    emit(shown[columns].rename(columns={"chance": "by chance (p)", "in_layers": "within layers (p)"}), json)
    for unit, name in found.frame[found.frame["measure"] == "overlap"][["unit", "set"]].itertuples(
        index=False
    ):
        for side, called in (("a", found.a), ("b", found.b)):
            alone = found.only(side, name, unit)
            if alone:
                more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
                say(f"only {side.upper()}", f"{called}, {name}: {' '.join(alone[:_SHOWN])}{more}")


def _pair(expected: float, p: float) -> str:
    return "-" if p != p else f"{expected:.2f} ({p:.2g})"


def _sizes(row: object) -> str:
    n_a, n_b, both, n = (getattr(row, k) for k in ("n_a", "n_b", "shared", "n"))
    return f"{n:.0f}" if n_a != n_a else f"{both:.0f} of {n_a:.0f} and {n_b:.0f} in {n:.0f}"
