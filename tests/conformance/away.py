"""What the tests of the nnsight engine need a process of its own for: `python -m tests.conformance.away FOLDER`.

It prints one line of JSON: what importing nnsight did to the process, how far a rehearsed remote run of the model in
FOLDER is from a local one, and what a remote run would send. Under pytest signatures are checked at every call, and
functions that carry such a check cannot be sent.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def marks() -> dict[str, Any]:
    """What is loaded when, and what the first use of the engine leaves behind."""
    import interp

    before = "nnsight" in sys.modules
    import torch

    from interp.intervene import export
    from interp.models import load, remote, skeleton
    from interp.models.engines import nnsight as engine

    assert interp and export and load and remote and skeleton
    modules = "nnsight" in sys.modules
    backward = torch.Tensor.backward
    nnsight = engine.library()
    linear = torch.nn.Linear(2, 2)
    model = nnsight.NNsight(linear)
    with model.trace(torch.ones(1, 2)):
        out = nnsight.save(model.output)
    out.sum().backward()
    return {
        "imported with interp": before,
        "imported with its modules": modules,
        "imported by use": engine.library() is sys.modules["nnsight"],
        "backward is torch's": torch.Tensor.backward is backward,
        "objects have save": hasattr(object(), "save") or hasattr(1, "save"),
        "works": linear.weight.grad is not None,
    }


def rehearsal(folder: str) -> dict[str, Any]:
    """Serialised, read back without this project's modules, and run: taps, edits, rows and interventions."""
    import torch

    import interp
    from interp.intervene.ablate import ablate
    from interp.models.engines.base import Record, Reduce, Rows
    from tests.subjects import examples

    away, here = interp.load(folder, remote="local"), interp.load(folder)
    weightless = all(p.is_meta for p in away.hf.parameters())
    cut = ablate("L0H1 M2 L1N4", mode="mean", reference=examples())
    cut += ablate("L1H2", mode="uniform", scope="answer")
    taps = {
        "z[1]": Record(),
        "head_out[1].2": Record(),
        "k_rot[1]": lambda k: k * 0.5,
        "attention[2]": lambda call: call.with_(q=call.q * 0.5),
        "mlp_out[0]": Reduce(lambda x, frame: x.sum()),
    }
    batch = here.batch(examples())
    rows = Rows(torch.tensor([[41, -1]] * 3))
    with here.apply(cut), away.apply(cut):
        a, b = here.run(batch, taps, rows=rows), away.run(batch, taps, rows=rows)
    pairs = [
        (a.logits, b.logits),
        (a.rows[1], b.rows[1]),
        *((a[s], b[s]) for s in ("z[1]", "head_out[1].2", "mlp_out[0]")),
    ]
    return {
        "weightless": weightless,
        "gap": max(float((x - y).abs().max()) for x, y in pairs),
        "moved": float((a.logits - here.run(batch).logits).abs().max()),
        "gradients": b.logits.requires_grad,
    }


def request(folder: str) -> dict[str, Any]:
    """Everything up to the request, what becomes of the answer, and of a refusal."""
    import torch
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
    from nnsight.modeling import huggingface

    import interp
    from interp.errors import EngineError
    from interp.models.engines.base import Record
    from tests.conformance.common import batch

    huggingface._ID_CACHE[folder] = "someone/tiny-llama"  # or the hub is asked
    os.environ["NDIF_API_KEY"] = "the key"
    model = interp.load(folder, remote=True)
    sent: dict[str, Any] = {}

    def answer(backend: Any, request: Any, tracer: Any) -> dict[str, Any]:
        sent.update(key=backend.api_key, model=request.model_key, payload=len(backend._serialize(tracer)))
        records = {"z[1]": torch.full((2,), 7.0)}
        return {
            "kept": {"logits": torch.ones(3, 1, 259), "records": records, "fired": {"z[1]": 1}, "rows": {}}
        }

    def refuse(backend: Any, request: Any, tracer: Any) -> None:
        raise RemoteError("no such model\nis deployed")

    RemoteBackend.request = answer
    trace = model.run(batch(), {"z[1]": Record()})
    sent.update(logits=float(trace.logits.sum()), record=trace["z[1]"].tolist())
    RemoteBackend.request = refuse
    try:
        model.run(batch())
    except EngineError as error:
        sent["refusal"] = str(error)
    return {**sent, "weights": sum(p.nbytes for p in model.hf.parameters())}


if __name__ == "__main__":
    found = {"marks": marks(), "rehearsal": rehearsal(sys.argv[1]), "request": request(sys.argv[1])}
    print(json.dumps(found))
