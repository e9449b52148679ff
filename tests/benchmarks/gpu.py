"""Time and memory on one GPU, on models of the shapes of Llama 1B and 8B with random weights.

    python -m tests.benchmarks.gpu --shape 1b [--device cuda] [--dtype bfloat16] [--out FILE.json]
    python -m tests.benchmarks.gpu --shape tiny --device cpu

The weights are drawn on the card, so nothing is downloaded; speed and memory do not depend on what they are. Reported:
attention rows of the last 32 queries against the bare prefill and against eager `output_attentions`, with peak memory;
the head sweep and the trace maps of `jobs_sweep` and `jobs_trace` against loops of torch hooks, and of nnsight and
TransformerLens where they are installed. Times are between CUDA events (wall time on a CPU), medians of calls after the
one whose memory is measured. What does not fit the memory says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from interp.models.batch import Batch
from interp.models.engines.base import Rows
from interp.models.subject import CausalLM
from interp.runs import write_bytes
from interp.trace.reducers import TopKeys
from tests.benchmarks.harness import Job, bare_forward, machine, peak_mb
from tests.benchmarks.jobs_sweep import head_sweep
from tests.benchmarks.jobs_trace import trace_job
from tests.benchmarks.peers import absent

QUERIES = 32
LENGTHS = (8192, 32768, 131072)

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 259,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""What is given to `LlamaConfig`."""

Row = dict[str, Any]
"""A line of the report: job, what, seconds (a cell), ratio (over the bare forward), MB (extra peak), and a note."""


def model(shape: str, device: str, dtype: torch.dtype) -> CausalLM:
    """A Llama of a shape, its weights drawn where they stay."""
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=131072, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return CausalLM(hf, None, name=f"Llama {shape}, random weights")


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call that was called before."""
    found = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return float(np.median(found))


def extra_mb(call: Callable[[], Any], device: str) -> float:
    """Peak memory that a call adds, in MB."""
    if not device.startswith("cuda"):
        return peak_mb(call)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@contextmanager
def eager(subject: CausalLM) -> Iterator[None]:
    """Attention as the textbook has it: the whole square in memory."""
    before = subject.hf.config._attn_implementation
    subject.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        subject.hf.set_attn_implementation(before)


def measured(what: str, job: str, call: Callable[[], Any], device: str, repeats: int) -> Row:
    """Memory of a first call and time of those after it, or a line that says that it does not fit."""
    try:
        extra = extra_mb(call, device)
        return {"job": job, "what": what, "seconds": seconds(call, device, repeats), "MB": extra}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"job": job, "what": what, "note": "out of memory"}


def rows_report(subject: CausalLM, lengths: Sequence[int], device: str, repeats: int) -> Iterator[Row]:
    """Attention rows of the last queries: the key with the most weight, for each head."""
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        ids = torch.randint(0, subject.config.vocab_size, (1, length), generator=generator)
        batch = Batch.of_ids(ids.tolist(), device=device)
        columns = torch.arange(length - QUERIES, length)[None].to(batch.ids.device)
        wanted = Rows(columns, TopKeys())
        job = f"rows of {QUERIES} queries, {length} tokens"
        bare = measured("bare prefill", job, lambda b=batch: bare_forward(subject, b), device, repeats)  # type: ignore[misc]
        yield bare | {"ratio": 1.0}
        ours = measured(
            "interp",
            job,
            lambda b=batch, w=wanted: subject.run(b, rows=w, keep=1),  # type: ignore[misc]
            device,
            repeats,
        )
        yield over(ours, bare)
        # Probabilities of all layers are kept, in the model's type; the softmax of one is made in fp32.
        per_head = length**2 / 2**20
        square = subject.n_heads * per_head * (subject.n_layers * subject.dtype.itemsize + 4)
        if device.startswith("cuda") and square > torch.cuda.mem_get_info()[0] / 2**20:
            yield {
                "job": job,
                "what": "eager output_attentions",
                "note": f"needs about {square / 1024:,.0f} GB",
            }
            continue
        with eager(subject):
            whole = measured(
                "eager output_attentions",
                job,
                lambda b=batch: bare_forward(subject, b, output_attentions=True),  # type: ignore[misc]
                device,
                repeats,
            )
        yield over(whole, bare)


def over(row: Row, bare: Row) -> Row:
    """A line with its time over that of the bare forward pass."""
    both = "seconds" in row and "seconds" in bare
    return row | {"ratio": row["seconds"] / bare["seconds"]} if both else row


def job_report(job: Job, device: str, repeats: int) -> Iterator[Row]:
    """Time a cell of a job's callables over the bare forward pass; one call of each is timed, they are long."""
    calls = job.callables()
    if job.warm is not None:
        job.warm()
    bare = measured("bare forward", job.title, calls.pop("bare"), device, repeats)
    yield bare | {"ratio": 1.0}
    results: dict[str, Any] = {}
    for name, call in calls.items():

        def kept(name: str = name, call: Callable[[], Any] = call) -> None:
            results[name] = call()

        row = measured("interp" if name == "ours" else name, job.title, kept, device, 1)
        if "seconds" in row:
            row["seconds"] /= job.units[name]
        yield over(row, bare)
    if job.equal is not None and set(results) == set(calls):
        yield {"job": job.title, "what": "largest difference", "note": f"{job.equal(results):.1e}"}


def report(
    shape: str, device: str, dtype: torch.dtype, lengths: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Everything, as plain data."""
    subject = model(shape, device, dtype)
    lines = list(rows_report(subject, lengths, device, repeats))
    for job in (
        head_sweep(subject),
        trace_job(subject, faster=8.0),
        trace_job(subject, text="80 tokens", faster=12.0),
        trace_job(subject, "mlp_out"),
    ):
        lines += job_report(job, device, repeats)
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "CPU"
    return {
        **machine(),
        "shape": shape,
        "device": where,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "not installed": absent(),
        "rows": lines,
    }


def table(found: Mapping[str, Any]) -> Any:
    """A rich table of the lines."""
    from rich.table import Table

    absent = f"; not installed: {', '.join(found['not installed'])}" if found["not installed"] else ""
    title = f"Llama {found['shape']}, {found['dtype']}, {found['device']}{absent}"
    out = Table(title=title, title_justify="left")
    for name in ("job", "what", "ms a cell", "x bare", "extra MB"):
        out.add_column(name, justify="left" if name in ("job", "what") else "right")
    before = ""
    for row in found["rows"]:
        numbers = [
            f"{1000 * row['seconds']:.4g}" if "seconds" in row else row.get("note", ""),
            f"{row['ratio']:.3g}" if "ratio" in row else "",
            f"{row['MB']:,.0f}" if "MB" in row else "",
        ]
        out.add_row("" if row["job"] == before else row["job"], row["what"], *numbers)
        before = row["job"]
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a shape, print the table and write the numbers where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file of the numbers")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device; write --device cpu for a trial on the CPU")
    found = report(args.shape, args.device, getattr(torch, args.dtype), args.lengths, args.repeats)
    if args.out:
        write_bytes(args.out, json.dumps(found, indent=1).encode())
    from rich.console import Console

    Console().print(table(found))


if __name__ == "__main__":
    main()
