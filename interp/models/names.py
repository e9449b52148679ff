"""What other libraries call a site, read for one model: paths of nnsight, which are those of Hugging Face modules.

`model.layers.12.self_attn.o_proj.input`, `transformer.h.3.mlp.output[0]`, `model.transformer.h[3].mlp.output`: the name
of nnsight's outermost envoy may lead, layers may be in brackets. Names of TransformerLens' hooks need no model, so
`Site.parse` reads them.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from interp.errors import UsageError
from interp.models.sites import Site, is_path

if TYPE_CHECKING:
    from interp.models.subject import CausalLM


def site(subject: CausalLM, where: str | Site) -> Site:
    """The site that a user means; see `CausalLM.site`."""
    if isinstance(where, Site) or not is_path(where.strip()):
        return Site.parse(where)
    text = re.sub(r"\[(\d+)\]", r".\1", where.strip())
    text = re.sub(r"\.inputs?(\.0)*$", ".input", re.sub(r"\.output(\.0)*$", ".output", text))
    known = paths(subject)
    found = known.get(text) or known.get(text.removeprefix("model."))
    if found is None:
        raise UsageError(f"'{where}' is no site of {subject.name}: {_why(subject, text, known)}")
    if len(found) > 1:
        raise UsageError(f"'{where}' holds {', '.join(map(str, found))} side by side; write the one you mean")
    return found[0]


def paths(subject: CausalLM) -> dict[str, list[Site]]:
    """Every path of a model that is a site, and the sites that lie there."""
    family = subject.family
    out: dict[str, list[Site]] = {}
    names = {id(module): name for name, module in subject.hf.named_modules()}
    out[f"{names[id(subject.hf.get_input_embeddings())]}.output"] = [Site("embed")]
    if not getattr(subject.config, "final_logit_softcapping", None):
        out[f"{names[id(subject.hf.get_output_embeddings())]}.output"] = [Site("logits")]
    for layer in range(subject.n_layers):
        for kind in family.sites:
            one = Site(kind, layer)
            out.setdefault(one.nnsight_path(family), []).append(one)
        if not family.post_norm:  # then what a sub-block returns is what it adds to the residual stream
            block = f"{family.layers}.{layer}"
            out.setdefault(f"{block}.{family.attention}.output", [Site("attn_out", layer)])
            down = family.sites["neurons"].module
            out.setdefault(f"{block}.{down}.output", [Site("mlp_out", layer)])
    return out


def _why(subject: CausalLM, text: str, known: dict[str, list[Site]]) -> str:
    number = re.search(rf"\b{re.escape(subject.family.layers)}\.(\d+)\b", text)
    if number and int(number[1]) >= subject.n_layers:
        return f"it has layers 0 to {subject.n_layers - 1}"
    if text.endswith("lm_head.output"):
        return "a softcap makes the logits of it; write logits"
    near = difflib.get_close_matches(text, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"sites have paths like {next(iter(known))}"
    if subject.family.post_norm and text.endswith(".output") and number:
        return f"what is added to the residual stream is normed first; {hint}"
    return hint
