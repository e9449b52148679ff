"""Sites by the names of other libraries: TransformerLens' hooks, and paths of nnsight and Hugging Face."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UsageError
from interp.models import names
from interp.models.engines.base import Record
from interp.models.families import FAMILIES
from interp.models.sites import LENS_HOOKS, Site
from tests.subjects import ALL, examples, subject


@pytest.mark.parametrize("kind", LENS_HOOKS)
def test_hook_names_of_transformer_lens_go_there_and_back(kind):
    site = Site(kind, 11)
    assert Site.parse(site.lens_name()) == site
    assert subject("llama").site(f" {Site(kind, 2).lens_name()} ") == Site(kind, 2)
    assert Site.parse("hook_embed") == Site("embed") and Site("embed").lens_name() == "hook_embed"


@pytest.mark.parametrize("family", ALL)
def test_paths_go_there_and_back(family):
    s = subject(family)
    for kind, place in s.family.sites.items():
        path = Site(kind, 1).nnsight_path(s.family)
        s.hf.get_submodule(path.rpartition(".")[0])
        assert path.rpartition(".")[2] == {"in": "input", "out": "output"}[place.side]
        if place.part.startswith(("fused", "headwise")):
            with pytest.raises(UsageError, match=r"holds q\[1\], k\[1\], v\[1\] side by side"):
                s.site(path)
        else:
            assert s.site(path) == s.site(f"model.{path}") == Site(kind, 1)


def test_paths_are_read_as_people_write_them():
    s, g = subject("llama"), subject("gpt2")
    for text in (
        "model.layers.1.self_attn.o_proj.input",
        "model.layers[1].self_attn.o_proj.input",
        "model.model.layers.1.self_attn.o_proj.input",
        "model.layers.1.self_attn.o_proj.inputs[0][0]",
    ):
        assert s.site(text) == Site("z", 1), text
    assert s.site("model.layers.2.output[0]") == Site("resid_post", 2)
    assert s.site("model.layers.0.self_attn.output[0]") == s.site("model.layers.0.self_attn.o_proj.output")
    assert s.site("model.layers.0.self_attn.output") == Site("attn_out", 0)
    assert s.site("model.layers.0.mlp.down_proj.output") == Site("mlp_out", 0)
    assert s.site("model.embed_tokens.output") == g.site("transformer.wte.output") == Site("embed")
    assert s.site("lm_head.output") == Site("logits")
    assert g.site("model.transformer.h[2].attn.c_proj.input") == Site("z", 2)


@pytest.mark.parametrize("family", ALL)
def test_every_path_holds_what_its_site_records(family):
    """The tensor that a plain torch hook at the path sees is the tensor of the site, its heads put side by side."""
    s = subject(family)
    batch = s.batch(examples((24, 17)))
    every = {path: found[0] for path, found in names.paths(s).items() if len(found) == 1}
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for path in every:
        module, _, side = path.rpartition(".")

        def keep(module, args, kwargs, output, path=path, side=side):
            value = (args[0] if args else kwargs["hidden_states"]) if side == "input" else output
            seen[path] = value[0] if isinstance(value, tuple) else value

        handles.append(s.hf.get_submodule(module).register_forward_hook(keep, with_kwargs=True))
    try:
        # Plain taps, since two paths of one site are two taps there, and only one of them may be a `Record`.
        trace = s.run(batch, {path: lambda x: None for path in every}, keep=batch.width)
    finally:
        for handle in handles:
            handle.remove()
    assert len(every) >= 6 * s.n_layers
    for path, site in every.items():
        assert torch.equal(trace[path].reshape(seen[path].shape), seen[path]), path
        assert trace[path] is trace[site] and path in trace


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blocks.1.attn.hook_zz", "did you mean attn.hook_z"),
        ("blocks.1.ln1.hook_scale", "those that have: hook_resid_pre"),
        ("blocks.1.attn.hook_pattern", r"ask for rows=Rows\(columns\), to change it tap attention"),
        ("blocks.7.hook_resid_pre", "layers 0 to 2"),
        ("model.layers.9.mlp.output", "it has layers 0 to 2"),
        ("model.layers.1.mlp.down_prj.input", r"did you mean model\.layers\.1\.mlp\.down_proj\.input"),
        ("transformer.h.1.mlp.output", r"did you mean model\.layers\.1\.mlp\.output"),
        ("nothing.output", "sites have paths like model.embed_tokens.output"),
        ("model.layers.1.self_attn.o_proj", "is not a site; write kind"),
        ("resid_pst[1]", "did you mean 'resid_post'"),
    ],
)
def test_a_name_of_no_site_says_what_is_near(text, told):
    with pytest.raises(UsageError, match=told):
        subject("llama").run(examples(), {text: Record()})


def test_a_path_that_is_no_site_of_this_family_says_why():
    gemma = subject("gemma2")
    with pytest.raises(UsageError, match="normed first"):
        gemma.site("model.layers.1.self_attn.o_proj.output")
    with pytest.raises(UsageError, match="softcap"):
        gemma.site("lm_head.output")
    with pytest.raises(UsageError, match=r"only a model can read it; write subject\.site"):
        Site.parse("model.layers.1.mlp.output")
    for kind in ("q_rot", "head_out", "attention", "o"):
        with pytest.raises(UsageError, match="no input or output of a module"):
            Site(kind, 0).nnsight_path(FAMILIES["llama"])
    for kind in ("attention", "o", "down"):
        with pytest.raises(UsageError, match="TransformerLens has no hook"):
            Site(kind, 0).lens_name()


def test_a_trace_is_read_by_the_name_that_was_given():
    taps = {"model.layers.1.mlp.output": lambda x: 0 * x, "blocks.1.hook_mlp_out": Record()}
    trace = subject("llama").run(examples(), taps)
    assert not trace["model.layers.1.mlp.output"].any()
    assert trace["mlp_out[1]"] is trace["blocks.1.hook_mlp_out"]
    with pytest.raises(UsageError, match="only a model"):
        trace["model.layers.2.mlp.output"]
