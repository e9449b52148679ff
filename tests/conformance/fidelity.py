"""How far the engines are from Hugging Face and from each other: the README's fidelity table.

    python -m tests.conformance.fidelity            # measure and print
    python -m tests.conformance.fidelity --write    # and write figures/data/fidelity.json and the README

Logits are compared with a plain run of the Hugging Face module, at every token of a left-padded batch in fp32.
Recordings are those of every site in every layer: under `hooks` the residual stream against Hugging Face's own
`hidden_states`, under the others all sites against `hooks`; a difference counts as a share of the site's largest value.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import interp
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from tests.conformance.common import ENGINES, FAMILIES, bare, batch, in_every_layer
from tests.subjects import subject

ROOT = Path(__file__).parents[2]
DATA = ROOT / "figures" / "data" / "fidelity.json"
BLOCK = re.compile(r"(?<=<!-- fidelity -->\n).*?(?=\n<!-- /fidelity -->)", re.DOTALL)
TEXTS = (
    "The lighthouse keeper wrote the number of each passing ship in a ledger bound in green cloth.",
    "Her password was opal lantern seventeen.",
    "In the spring the river rose above the mill, and for three days nobody in the village could cross it.",
)


def measure(model: CausalLM, given: Batch) -> dict[str, dict[str, float]]:
    """Largest differences of logits and of recordings, for each engine."""
    truth = bare(model.hf, given, output_hidden_states=True)
    real = given.mask.bool()
    out: dict[str, dict[str, float]] = {}
    reference: dict[Site, torch.Tensor] = {}
    for engine in ENGINES:
        under = model if engine == "hooks" else model.with_engine(engine)
        lacks = getattr(under.engine, "lacks", {})
        sites = [s for s in in_every_layer(model) if s.kind not in lacks]
        trace = under.run(given, {s: Record() for s in sites}, keep=given.width)
        if engine == "hooks":
            reference = trace.records
            pairs = [(trace[Site("resid_pre", i)], truth.hidden_states[i]) for i in range(model.n_layers)]
        else:
            pairs = [(trace[s], reference[s]) for s in sites]
        shares = [float((a - b)[real].abs().max() / b[real].abs().max()) for a, b in pairs]
        logits = float((trace.logits - truth.logits)[real].abs().max())
        out[engine] = {"logits": float(f"{logits:.3g}"), "recordings": float(f"{max(shares):.3g}")}
    return out


def measured() -> dict[str, Any]:
    """All models: tiny ones of every family, and the default model."""
    models: dict[str, Any] = {}
    for family in FAMILIES:
        model = subject(family)
        models[family] = {"row": model.family.name, "engines": measure(model, batch())}
    model = interp.load("smollm2")
    given = Batch.of_ids([model.tokens.encode(t).ids for t in TEXTS])
    models["smollm2"] = {"row": "SmolLM2-135M", "engines": measure(model, given)}
    versions = {name: version(name) for name in ("torch", "transformers", "transformer-lens", "nnsight")}
    return {"versions": versions, "models": models}


def render(data: dict[str, Any]) -> str:
    """The table: a row for each row of the site table, with the largest difference of its models."""
    rows: dict[str, list[dict[str, dict[str, float]]]] = {}
    for entry in data["models"].values():
        rows.setdefault(entry["row"], []).append(entry["engines"])
    lines = [
        "| logits / recordings | " + " | ".join(f"`{e}`" for e in ENGINES) + " |",
        "|---|" + "---|" * len(ENGINES),
    ]
    for row, found in rows.items():
        cells = [
            " / ".join(f"{max(f[engine][what] for f in found):.0e}" for what in ("logits", "recordings"))
            for engine in ENGINES
        ]
        cells = [re.sub(r"\b0e\+00\b", "0", cell) for cell in cells]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(write: bool) -> None:
    """Measure, print, and write where asked to."""
    data = measured()
    print(render(data))
    if write:
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        readme = ROOT / "README.md"
        text = readme.read_text(encoding="utf-8")
        assert BLOCK.search(text), "README.md has no fidelity block"
        readme.write_text(BLOCK.sub(lambda _: render(data), text), encoding="utf-8")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
