"""Figures that were published of retrieval heads, each with where it comes from; none was measured here.

Tags: `data`, computed from score files that a public repository ships; `code`, read off a public repository's output;
`abs`, said in the abstract of Wu et al. (2024, arXiv 2404.15574). The repositories' needles, haystacks and score files
are not part of this package: Retrieval_Head has no licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WU = "nightdessert/Retrieval_Head 3ac171a, head_score"
PAPER = "Wu et al. 2024, arXiv 2404.15574, abstract"
NOTEBOOK = "nightdessert/Retrieval_Head 3ac171a, notebook of the masked run"
COLLAPSED = "needle first or last in most of its cells"


@dataclass(frozen=True)
class Model:
    """What the score file of a model says.

    Attributes:
        over, over_half: heads that score 0.1 or more, and 0.5 or more.
        zero: share of heads whose mean is 0, to the per cent.
        top: scores of the best heads, best first.
        always: heads that copy in every instance; None where it was not told.
    """

    name: str
    layers: int
    heads: int
    n: int
    over: int
    over_half: int
    zero: float
    top: tuple[float, ...]
    source: str = WU
    always: int | None = None
    note: str = ""


MODELS = (
    Model("Llama-2-7b-80k", 32, 32, 586, 33, 6, 0.70,
          (0.943, 0.920, 0.800, 0.618, 0.614, 0.557, 0.459, 0.437, 0.420, 0.400), always=12),
    Model("Llama-2-13b-64k", 40, 40, 367, 33, 6, 0.73, (0.905, 0.871, 0.650, 0.626, 0.596, 0.564)),
    Model("Mistral-7B-v0.2", 32, 32, 362, 43, 5, 0.65, (0.943, 0.928, 0.774, 0.743, 0.603, 0.462), note=COLLAPSED),
    Model("Mixtral-8x7B-v0.1", 32, 32, 390, 63, 7, 0.58, (0.945, 0.926, 0.923, 0.847, 0.651, 0.536), note=COLLAPSED),
    Model("Yi-6B-200K", 32, 32, 567, 53, 7, 0.49, (0.778, 0.760, 0.756, 0.695, 0.659), note=COLLAPSED),
    Model("Qwen1.5-14B", 40, 40, 390, 61, 10, 0.53, (1.003, 1.000, 0.923, 0.886, 0.790), note=COLLAPSED),
    Model("Qwen1.5-14B-Chat", 40, 40, 221, 68, 1, 0.71, (0.525, 0.422, 0.413, 0.405), note=COLLAPSED),
    Model("Llama-3-8B-Instruct", 32, 32, 107, 50, 7, 0.71, (1.009, 0.601, 0.572, 0.566, 0.534, 0.532, 0.531),
          source="HeadKV 0862a09"),
    Model("Llama-3.1-8B-Instruct", 32, 32, 342, 33, 3, 0.76, (0.923, 0.575, 0.512, 0.479, 0.463, 0.462),
          source="YoumiMa/RetMask", note=COLLAPSED),
    Model("Qwen3-8B", 36, 32, 600, 57, 13, 0.57, (0.993, 0.894, 0.884, 0.855, 0.736), source="YoumiMa/RetMask",
          note=COLLAPSED),
)  # fmt: skip

MASKED = (
    ("Llama-2-7b-80k", "recall_top_30", 8.33, "code", NOTEBOOK, "30 of 1024 heads, 2.9%"),
)  # fmt: skip

COLUMNS = ["kind", "subject", "statistic", "value", "ci_lo", "ci_hi", "n", "tag", "source", "note"]
"""Columns of a table of figures; `kind` is `published` or `ours`, recall is in per cent."""


def table() -> pd.DataFrame:
    """All published figures, one row each."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for m in MODELS:
        total = m.layers * m.heads
        told: dict[str, float | None] = {
            "heads": total, "share_over_0.1": m.over / total, "share_over_0.5": m.over_half / total,
            "share_zero": m.zero, "always_active": m.always,
        }  # fmt: skip
        told |= {f"top_{i}": score for i, score in enumerate(m.top, 1)}
        for statistic, value in told.items():
            if value is not None:
                row = {
                    "subject": m.name,
                    "statistic": statistic,
                    "value": float(value),
                    "n": m.n,
                    "tag": "data",
                }
                rows.append({**row, "source": m.source, "note": m.note})
    for subject, statistic, value, tag, source, note in MASKED:
        row = {"subject": subject, "statistic": statistic, "value": value, "n": None, "tag": tag}
        rows.append({**row, "source": source, "note": note})
    rows.append({
        "subject": "all models of the paper", "statistic": "share_over_0.1", "value": 0.05, "n": None, "tag": "abs",
        "source": PAPER, "note": "an upper bound",
    })  # fmt: skip
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    frame["kind"] = "published"
    return frame.astype({"value": float, "ci_lo": float, "ci_hi": float, "n": float})
