"""Cost of scoring retrieval heads, against one bare SDPA prefill and against eager attention, in one run.

    python tests/benchmarks/bench_retrieval.py [--rounds 5] [--length 2048] [--memory 4096] [--out FILE.json]

Time: `RetrievalHeads.fit` on one instance and the bare forward pass of the same prompt, interleaved; medians of the
ratios of rounds, with a bootstrap interval. Memory: peak resident memory above that of the loaded model, each in a
process of its own, at `--memory` tokens. Eager attention with `output_attentions` is run at the same length where the
machine has the memory, else at half of it, times four (its square grows so), and the table says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats


def loaded(length: int) -> tuple[Any, Any]:
    import interp
    from interp.tasks.base import FixedTask

    model = interp.load("smollm2")
    # The first instance that the model answers, so that the draft is verified in one pass as in most.
    for example in interp.task("niah", length=length, n=8, seed=0).examples(model):
        if interp.RetrievalHeads(accept=-1.0).fit(model, FixedTask([example])).instances_["exact"].all():
            return model, example
    raise SystemExit(f"the model answers no instance at {length} tokens")


def bare(model: Any, example: Any, **kwargs: Any) -> Any:
    import torch

    with torch.no_grad():
        batch = model.batch([example])
        return model.hf(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=1,
            **kwargs,
        )


def score(model: Any, example: Any) -> Any:
    import interp
    from interp.tasks.base import FixedTask

    return interp.RetrievalHeads(accept=-1.0).fit(model, FixedTask([example]))


def timed(job: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    ratios = np.array(a) / np.array(b)
    low, high = float("nan"), float("nan")
    if len(ratios) > 2:
        found = stats.bootstrap((ratios,), np.median, rng=np.random.default_rng(0), method="percentile")
        low, high = found.confidence_interval
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def time_ratio(length: int, rounds: int) -> dict[str, Any]:
    model, example = loaded(length)
    jobs = {"score": lambda: score(model, example), "bare": lambda: bare(model, example)}
    walls: dict[str, list[float]] = {name: [] for name in jobs}
    cpus: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for turn in range(rounds):
        for name in list(jobs) if turn % 2 else list(jobs)[::-1]:
            wall, cpu = timed(jobs[name])
            walls[name].append(wall)
            cpus[name].append(cpu)
    return {
        "length": length,
        "rounds": rounds,
        "wall ratio": ratio(walls["score"], walls["bare"]),
        "cpu ratio": ratio(cpus["score"], cpus["bare"]),
        "bare seconds": float(np.median(walls["bare"])),
        "score seconds": float(np.median(walls["score"])),
    }


def peak(job: str, length: int) -> float:
    """Peak resident MB of a job above the loaded model, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", job, "--memory", str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def child(job: str, length: int) -> None:
    import interp

    model = interp.load("smollm2")
    (example,) = interp.task("niah", length=length, n=1, seed=0).examples(model)
    # Nothing of this length has run yet, so all that the pass takes shows above what is resident now.
    before = status("VmRSS")
    if job == "eager":
        model.hf.set_attn_implementation("eager")
        bare(model, example, output_attentions=True)
    elif job == "bare":
        bare(model, example)
    else:
        score(model, example)
    print(status("VmHWM") - before)


def status(field: str) -> float:
    """A field of the process's memory status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system does not tell {field}")


def free_gb() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    return 0.0


def memory(length: int) -> dict[str, Any]:
    out: dict[str, Any] = {
        "length": length,
        "bare MB": peak("bare", length),
        "score MB": peak("score", length),
    }
    whole = free_gb() > 21.5
    out["eager MB"] = peak("eager", length) if whole else 4 * peak("eager", length // 2)
    out["eager"] = f"measured at {length}" if whole else f"4 x measured at {length // 2}"
    out["score / eager"] = out["score MB"] / out["eager MB"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--memory", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.memory)
        return
    result = {"time": time_ratio(args.length, args.rounds), "memory": memory(args.memory)}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
