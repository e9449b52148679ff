"""Retrieval heads of smollm2: the head map, the dose curve and the mechanism x task matrix.

    python figures/retrieval_heads.py [--out figures/build] [--formats png pdf]

Reads the committed tables of a full run (`interp atlas smollm2`; figures/data/smollm2/provenance.json has versions,
fingerprint and seeds) and nothing else, so every figure of the README can be rebuilt from them.
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--formats", nargs="+", default=["json", "html", "pdf", "svg", "png"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = {args.out / name: figure for name, figure in figures().items()}
    for path in plot.write_all(drawn, tuple(args.formats), plotlyjs="directory"):
        print(path)


if __name__ == "__main__":
    main()
