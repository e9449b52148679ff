"""`interp channels` and `interp circuit`: who talks to whom by the weights, and which paths carry an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import Json, emit, progress, say
from interp.cli.options import Device, Dtype, Model, N, Seed, Set
from interp.cli.tasks import build
from interp.cli.work import _load
from interp.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

Out = Annotated[
    Path | None, typer.Option(help="Write the tables, and with --figure the figures, into this folder.")
]
Figure = Annotated[
    bool,
    typer.Option("--figure", help="Draw the figures too: JSON, HTML and, with a browser, PDF, SVG, PNG."),
]
Top = Annotated[int, typer.Option(min=1, help="Rows shown, and edges of each mode drawn.")]


def _write(
    folder: Path | None, tables: dict[str, pd.DataFrame], figures: dict[str, Any], asked: bool
) -> None:
    """Tables as Parquet and the figures that are asked for, each made when it is."""
    if folder is None:
        return
    from interp.runs import write_frame

    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        write_frame(folder / f"{name}.parquet", frame)
    if asked:
        from interp.plot import write_all

        write_all({folder / name: make() for name, make in figures.items()}, plotlyjs="directory")
    say("wrote", str(folder.resolve()))


def channels(
    model: Model,
    mode: Annotated[str, typer.Option(help="Read as Q (query), K (key), V (value); some of them.")] = "QKV",
    top: Top = 20,
    level: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Components up to this q-value are outliers.")
    ] = 0.05,
    by: Annotated[
        str, typer.Option(help="Null of the q-value: q (random directions) or q_null (anti-causal pairs).")
    ] = "q",
    hubs: Annotated[bool, typer.Option(help="Take out what a component or reader scores with all.")] = True,
    out: Out = None,
    figure: Figure = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Which heads talk to which? Read off the weights, without running any text.

    With --out: components against readers, their spectrum beside both nulls, and composition scores of whole heads.
    """
    from interp.atlas_channels import spectra, table
    from interp.locate.channels.locator import Channels

    _check_out(out, figure)
    modes = tuple(mode.upper().replace(",", ""))
    locator = Channels(modes, level=level, by=by, hubs=hubs)  # type: ignore[arg-type]
    subject = _load(model, device, dtype)
    with progress("layer pairs") as report:
        locator.fit(subject, progress=report)
    edges, spectrum = table(locator), spectra(locator)
    tables = {"channels": edges, "channel_spectrum": spectrum}
    if out is not None:
        from interp.locate.channels.composition import composition

        # Of whole heads, against which the components are the news.
        with progress("layer pairs") as report:
            tables["composition"] = composition(
                subject, locator.modes, weights=locator.weights_, progress=report
            )
    shape = {"layers": subject.n_layers, "heads": subject.n_heads, "kv_heads": subject.n_kv_heads}

    def graph() -> Any:
        from interp.plot import channel_graph

        return channel_graph(edges, top=top, **shape)

    def curves() -> Any:
        from interp.plot import component_spectrum

        return component_spectrum(spectrum)

    def whole() -> Any:
        from interp.plot import composition_map

        return composition_map(tables["composition"])

    _write(out, tables, {"channels": graph, "spectrum": curves, "composition": whole}, figure)
    columns = ["reader", "mode", "value", "q", "q_apart", "q_null"]
    rows = [
        {"channel": i, "components": " + ".join(f"{h}.{n}" for h, n in c.components)}
        | {k: c.scores[k].iloc[0] for k in columns}
        for i, c in enumerate(locator.channels_[:top])
    ]
    emit(rows, json)
    beyond = int((edges["q_null"] <= level).sum())
    say(
        "found",
        f"{len(locator.channels_)} channels among {locator.components_.tests['readers']:,} tests; {beyond} of the "
        f"{len(edges)} strongest components also beat pairs that cannot communicate (q {level:g})",
    )


def circuit(
    model: Model,
    task: Annotated[str, typer.Argument(help="A task with corrupt twins, such as ioi; or a .jsonl file.")],
    method: Annotated[
        str,
        typer.Option(help="path (exact, each head straight to the receivers) or eap-ig (edges, estimated)."),
    ] = "path",
    receivers: Annotated[
        str, typer.Option(help="For path: logits, or inputs as 'L9H6.q L9H9.q', patched together.")
    ] = "logits",
    corruption: Annotated[
        str | None, typer.Option(help="Which corrupt twin; default the task's first.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="For eap-ig: steps of the integral; 1 is plain EAP.")] = 5,
    top: Top = 20,
    n: N = 32,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    figure: Figure = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Through which heads or edges does the answer go?"""
    if method not in ("path", "eap-ig"):
        raise UsageError(f"--method {method}: write path or eap-ig")
    _check_out(out, figure)
    asked = build(task, n, seed, set_)
    subject = _load(model, device, dtype)
    if method == "path":
        from interp.locate.circuits.path_patching import path_patch

        with progress("paths") as report:
            found = path_patch(
                subject, asked, receivers.split(), corruption=corruption, seed=seed, progress=report
            )
        found = found.sort_values("effect", key=abs, ascending=False, ignore_index=True)
        columns = ["sender", "receivers", "effect", "se", "ci_lo", "ci_hi", "p", "n"]
    else:
        from interp.locate.circuits.attribution import edge_scores

        with progress("gradients") as report:
            found = edge_scores(subject, asked, corruption=corruption, steps=steps, progress=report)
        found = found.sort_values("score", key=abs, ascending=False, ignore_index=True)
        columns = ["edge", "score", "se", "n", "n_clusters"]

    def drawn() -> Any:
        from interp.plot import channel_graph, circuit_heads

        if method == "path":
            return circuit_heads(found)
        # The graph is of heads, so only edges between them are drawn.
        own = found[found["writer"].str.contains("H") & found["input"].isin(["q", "k", "v"])]
        reader = own["reader"].str.replace(r"\.[qkv]$", "", regex=True)
        edges = own.assign(mode=own["input"].str.upper(), value=own["score"].abs(), reader=reader)
        return channel_graph(
            edges, top=top, layers=subject.n_layers, heads=subject.n_heads, kv_heads=subject.n_kv_heads
        )

    name = "paths" if method == "path" else "edges"
    _write(out, {name: found}, {name: drawn}, figure)
    emit(found[columns].head(top), json)
    if method == "path":
        say(
            "found",
            f"clean {found['clean'].iloc[0]:.3f}, corrupt {found['corrupt'].iloc[0]:.3f}: effect 1 is all of it",
        )


def _check_out(out: Path | None, figure: bool) -> None:
    """Before the work: a figure needs a folder."""
    if figure and out is None:
        raise UsageError("--figure needs a folder to write into: add --out FOLDER")
