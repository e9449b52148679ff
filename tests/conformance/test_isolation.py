"""What an engine leaves behind: nothing. Weights are shared, the module is untouched, other models notice nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from interp.errors import EngineError
from interp.models.engines.base import Record, Rows
from interp.models.subject import CausalLM
from tests.conformance.common import CLOSE, ENGINES, FAMILIES, OTHERS, batch, kinds, model
from tests.subjects import subject
from tests.tiny import tiny


def hooks(m: nn.Module) -> list[object]:
    return [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]


def state(s: CausalLM) -> dict[str, object]:
    """What a run might have changed and must not have."""
    bridge = getattr(s.engine, "bridge", None)
    modules = list(s.hf.modules()) + ([] if bridge is None else list(bridge.modules()))
    ours = ("interp", "transformer_lens")
    return {
        "forwards": [id(m.__dict__.get("forward")) for m in modules],
        "hooks": [sum(getattr(h, "__module__", "").startswith(ours) for h in hooks(m)) for m in modules],
        "visible_hooks": sum(len(m.fwd_hooks) for m in modules if hasattr(m, "fwd_hooks")),
        "kernel": s.hf.config._attn_implementation,
        "shares": None if bridge is None else bridge.cfg.use_attn_result,
        "level": logging.getLogger("transformers").level,
        "grad": torch.is_grad_enabled(),
        "busy": s.hooked,
        "training": [m.training for m in modules],
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_nothing_is_left_after_an_exception_in_a_tap(engine, family, rng_untouched):
    s, given = model(family, engine), batch()
    intact = s.run(given, {"z[1]": Record()}, keep=given.width).logits
    before = state(s)
    assert not before["shares"] and not before["visible_hooks"]

    def fail(value, *rest):
        raise RuntimeError("on purpose")

    for kind in kinds(family, engine):
        site = kind if kind in ("embed", "logits") else f"{kind}[1]"
        with pytest.raises(RuntimeError, match="on purpose"):
            s.run(given, {"head_out[0]": Record(), site: fail} if kind != "head_out" else {site: fail})
        assert state(s) == before, kind
    with pytest.raises(RuntimeError, match="on purpose"):
        s.run(given, rows=Rows(torch.tensor([[1]] * len(given)), fail))
    assert state(s) == before
    assert torch.equal(s.run(given, keep=given.width).logits, intact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", OTHERS)
def test_the_original_is_untouched_and_its_weights_are_shared(engine, family, tmp_path):
    module = tiny(family)
    names, kept = list(module.state_dict()), {k: v.clone() for k, v in module.state_dict().items()}
    where = {k: v.data_ptr() for k, v in module.state_dict().items()}
    kernel, logits = (
        module.config._attn_implementation,
        CausalLM(module, None, name=family).run(batch()).logits,
    )
    other = CausalLM(module, None, name=family, engine=engine)
    other.run(batch(), {"z[1]": torch.zeros_like, "head_out[2]": lambda x: 2 * x, "resid_post[0]": Record()})
    assert list(module.state_dict()) == names
    assert all(torch.equal(module.state_dict()[k], kept[k]) for k in names)
    assert {k: v.data_ptr() for k, v in module.state_dict().items()} == where
    assert module.config._attn_implementation == kernel
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in module.modules())
    module.save_pretrained(tmp_path)
    again = type(module).from_pretrained(tmp_path).eval()
    assert torch.equal(CausalLM(again, None, name=family).run(batch()).logits, logits)
    inside = other.engine.bridge if engine == "lens" else other.engine.model._module
    own = {id(t) for t in (*module.parameters(), *module.buffers())}
    assert {id(p) for p in inside.parameters()} == {id(p) for p in module.parameters()}
    # TransformerLens puts a bias of zeros where the unembedding has none.
    assert {n for n, t in inside.named_buffers() if id(t) not in own} <= {"unembed._original_component.bias"}


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma3"])
@pytest.mark.parametrize("engine", OTHERS)
def test_changed_and_replaced_weights_are_seen(engine, family):
    """Also those of queries, keys and values that the family keeps in one matrix."""
    module = tiny(family)
    s = CausalLM(module, None, name=family)
    other, given = s.with_engine(engine), batch()
    first = other.run(given).logits
    with torch.no_grad():
        for kind in ("q", "k", "v", "neurons"):
            before = s.run(given).logits
            weight = s.module(1, s.family.sites[kind].module).weight
            weight[::2].mul_(0.5)  # half of it, since norms undo what scales the whole or a whole head
            assert (s.run(given).logits - before).abs().max() > 10 * CLOSE
            torch.testing.assert_close(other.run(given).logits, s.run(given).logits, atol=CLOSE, rtol=0)
        assert (other.run(given).logits - first).abs().max() > 0.01
        down = s.module(2, s.family.sites["neurons"].module)
        down.weight = nn.Parameter(down.weight.flip(0))
    torch.testing.assert_close(other.run(given).logits, s.run(given).logits, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_models_in_one_process_do_not_disturb_each_other(engine):
    a, b, given = model("llama", engine), model("qwen3", engine), batch()
    columns = torch.tensor([[given.width - 1]] * len(given))
    taps = {"z[1]": torch.zeros_like, "head_out[0]": Record()}
    first, second = (s.run(given, taps, rows=Rows(columns)) for s in (a, b))
    for s, alone in ((b, second), (a, first), (b, second)):
        again = s.run(given, taps, rows=Rows(columns))
        assert torch.equal(again.logits, alone.logits)
        assert torch.equal(again["head_out[0]"], alone["head_out[0]"])
        assert torch.equal(again.rows[2], alone.rows[2])


@pytest.mark.parametrize("engine", OTHERS)
def test_a_tap_may_run_the_reference_over_the_same_weights(engine):
    s, other, given = subject("llama"), model("llama", engine), batch()
    alone = s.run(given).logits
    before = other.run(given, {"z[1]": Record()}).logits
    seen = []

    def inside(value):
        seen.append(s.run(given, {"z[0]": Record()}).logits)

    assert torch.equal(other.run(given, {"z[1]": inside}).logits, before)
    assert torch.equal(seen[0], alone)


def test_a_tap_must_not_run_the_bridge_it_taps():
    other, given = model("llama", "lens"), batch()
    with pytest.raises(EngineError, match="before the pass"):
        other.run(given, {"z[1]": lambda z: other.run(given).logits})
    assert not other.hooked


_FRESH = """
import logging, random, sys, warnings
import torch
import interp
from tests.tiny import tiny
level, state = logging.getLogger("transformers").level, torch.get_rng_state()
s = interp.load(tiny("llama"))
assert not {"transformer_lens", "nnsight"} & set(sys.modules), "imported before it is asked for"
other = s.with_engine("lens")
assert "transformer_lens" in sys.modules and "nnsight" not in sys.modules
assert logging.getLogger("transformers").level == level == logging.WARNING
assert not any("generation flags" in str(f[1]) for f in warnings.filters)
assert torch.equal(torch.get_rng_state(), state)
"""


def test_transformer_lens_is_imported_late_and_leaves_no_trace():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _FRESH], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
