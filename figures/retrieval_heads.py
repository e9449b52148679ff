"""Retrieval heads of smollm2: the head map, the dose curve and the mechanism x task matrix.

    python figures/retrieval_heads.py [--out figures/build] [--formats png pdf]
    python figures/retrieval_heads.py --readme

Reads the committed tables of a full run (`interp atlas smollm2`; figures/data/smollm2 has them with spec, versions and
fingerprint) and nothing else. `--readme` prints the block of results in the README, which a test compares with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from interp import plot

DATA = Path(__file__).parent / "data" / "smollm2"


def figures(data: Path = DATA) -> dict[str, object]:
    """Every figure by its name."""
    scores = pd.read_parquet(data / "scores.parquet")
    effects = pd.read_parquet(data / "effects.parquet")
    answer = effects[effects["scope"].isin(["", "answer"]) & (effects["task"] == "niah")]
    everywhere = effects[~effects["task"].isin(["niah"])]
    return {
        "retrieval-heads": plot.head_map(scores, width="double"),
        "retrieval-heads-dose": plot.dose_curve(answer, width="double"),
        "retrieval-heads-matrix": plot.effect_matrix(everywhere, k=10, width="double"),
    }


def readme(data: Path = DATA) -> str:
    """What the tables say, as the README has it."""
    scores = pd.read_parquet(data / "scores.parquet")
    effects = pd.read_parquet(data / "effects.parquet")
    copy = scores[scores["method"] == "copy"].sort_values("score", ascending=False)
    found = copy[copy["score"] >= 0.1]
    late = int(found["layer"].between(17, 24).sum())
    best = ", ".join(f"{c} {v:.2f}" for c, v in zip(copy["component"][:5], copy["score"][:5], strict=True))
    lines = [
        f"{len(found)} of {len(copy)} heads ({len(found) / len(copy):.1%}) score 0.1 or more, {late} of them in layers "
        f"17 to 24; the best are {best}.",
        "",
        "| task | clean | ten heads cut | change, 95 % interval | ten matched others cut |",
        "|---|---|---|---|---|",
    ]
    everywhere = effects[effects["scope"].isin(["", "all"])]
    for name in dict.fromkeys(everywhere["task"]):
        own = everywhere[everywhere["task"] == name]
        metric = "accuracy" if "accuracy" in set(own["metric"]) else "nll"
        own = own[own["metric"] == metric]
        if not (own["condition"] == "cut").any():
            continue
        clean = own[own["condition"] == "clean"].iloc[0]
        cut = own[(own["condition"] == "cut") & (own["k"] == 10)].iloc[0]
        controls = own[(own["condition"] == "control") & (own["k"] == 10)]["value"]
        what = f"{name} (accuracy)" if metric == "accuracy" else f"{name} (nats a token)"
        lines.append(
            f"| {what} | {clean['value']:.2f} | {cut['value']:.2f} | {cut['delta']:+.2f} [{cut['ci_lo']:+.2f}, "
            f"{cut['ci_hi']:+.2f}] | {controls.mean():.2f} (of {len(controls)} draws, {controls.min():.2f} to "
            f"{controls.max():.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--formats", nargs="+", default=["json", "html", "pdf", "svg", "png"])
    parser.add_argument("--readme", action="store_true", help="print the README's block of results")
    args = parser.parse_args()
    if args.readme:
        print(readme())
        return
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = {args.out / name: figure for name, figure in figures().items()}
    for path in plot.write_all(drawn, tuple(args.formats), plotlyjs="directory"):
        print(path)


if __name__ == "__main__":
    main()
