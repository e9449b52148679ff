"""Every score of heads as a plain loop over whole attention matrices, one example and one unpadded run at a time.

Nothing here is shared with `interp.locate`: attention comes from an eager run with `output_attentions`, values and
what enters norms from hooks on modules, and norms are written out from their weights.
"""

from __future__ import annotations

import numpy as np
import torch

from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example

Matrix = np.ndarray


def eager(s: CausalLM, ids) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Attention of each layer, h t t, and the logits."""
    before = s.hf.config._attn_implementation
    s.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = s.hf(input_ids=torch.tensor([list(ids)]), output_attentions=True)
    finally:
        s.hf.set_attn_implementation(before)
    return [a[0] for a in out.attentions], out.logits[0]


def seen(s: CausalLM, ids, *sites: Site) -> dict[Site, torch.Tensor]:
    """What passes some sites, from plain hooks on the modules of the family's row."""
    found: dict[Site, torch.Tensor] = {}
    handles = []
    for site in sites:
        place = s.family.sites[site.kind]
        module = s.module(site.layer, place.module) if place.module else s.blocks[site.layer]

        def hook(m, args, kwargs, out, site=site, place=place):
            value = (args[0] if args else kwargs["hidden_states"]) if place.side == "in" else out
            found[site] = (value[0] if isinstance(value, tuple) else value)[0].detach()

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            s.hf(input_ids=torch.tensor([list(ids)]))
    finally:
        for handle in handles:
            handle.remove()
    return found


def values(s: CausalLM, found: torch.Tensor) -> torch.Tensor:
    """Output of the values' projection as t kv d_head."""
    if s.family.name == "gpt2":
        return found[:, 2 * s.d_model :].unflatten(-1, (s.n_heads, s.d_head))
    return found.unflatten(-1, (s.n_kv_heads, s.d_head))


def gain(s: CausalLM, norm) -> torch.Tensor:
    return 1 + norm.weight if s.family.name == "gemma" else norm.weight


def normed_direction(s: CausalLM, norm, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """d with d . y = u . (the norm's linear part, at the scale of x, of y)."""
    g = gain(s, norm) * u
    if s.family.name == "gpt2":
        centred = x - x.mean()
        return (g - g.mean()) / torch.sqrt((centred**2).mean() + norm.eps)
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return g / torch.sqrt((x**2).mean() + eps)


def final(s: CausalLM):
    return s.hf.transformer.ln_f if s.family.name == "gpt2" else s.hf.model.norm


def phi(s: CausalLM, e: Example, folded: bool) -> np.ndarray:
    """phi_t[j] of each layer, head and answer row: l h m n."""
    ids = e.full_ids[:-1]
    attention, _ = eager(s, ids)
    last = Site("resid_post", s.n_layers - 1)
    wanted = [Site("v", i) for i in range(s.n_layers)] + [last]
    read = seen(s, ids, *wanted)
    before = {i: _projected(s, ids, i) for i in range(s.n_layers)} if s.family.post_norm else {}
    out = np.zeros((s.n_layers, s.n_heads, len(e.answer_ids), len(ids)))
    unembed = s.hf.get_output_embeddings().weight.detach()
    for step, (row, token) in enumerate(zip(e.answer_rows, e.answer_ids, strict=True)):
        u = unembed[token]
        if folded:
            u = normed_direction(s, final(s), read[last][row], u)
        for i in range(s.n_layers):
            d = u
            if folded and before:
                d = normed_direction(s, s.module(i, "post_attention_layernorm"), before[i][row], u)
            v = values(s, read[Site("v", i)])
            projection = s.module(i, s.family.out_proj)
            w = projection.weight if s.family.name == "gpt2" else projection.weight.T
            for h in range(s.n_heads):
                head = w[h * s.d_head : (h + 1) * s.d_head].detach() @ d.detach()
                group = h * v.shape[1] // s.n_heads
                for j in range(row + 1):
                    out[i, h, step, j] = float(attention[i][h, row, j] * (v[j, group] @ head))
    return out


def _projected(s: CausalLM, ids, layer: int) -> torch.Tensor:
    found = []
    handle = s.module(layer, s.family.out_proj).register_forward_hook(lambda m, a, out: found.append(out[0]))
    try:
        with torch.no_grad():
            s.hf(input_ids=torch.tensor([list(ids)]))
    finally:
        handle.remove()
    return found[0].detach()


def needle(e: Example, role: str = "value") -> list[int]:
    return sorted({p for s in e.spans if (s.role, s.item) == (role, 0) for p in range(s.start, s.end)})


def contrast(per_key: np.ndarray, rows, places: list[int]) -> Matrix:
    """l h m n -> l h: the needle's keys less as many of the others, row by row."""
    out = np.zeros(per_key.shape[:2])
    for step, row in enumerate(rows):
        others = [j for j in range(row + 1) if j not in places]
        off = per_key[:, :, step, others].sum(-1) * len(places) / len(others)
        out += per_key[:, :, step, places].sum(-1) - off
    return out / len(rows)


def naive_scores(s: CausalLM, e: Example, null: tuple[int, ...], options) -> dict[str, Matrix]:
    """All scores of the forced answer that are told by attention and values."""
    ids = e.full_ids[:-1]
    attention = torch.stack(eager(s, ids)[0]).numpy()  # l h t t
    rows, places = list(e.answer_rows), needle(e, options.needle)
    n, first = len(places), len(e.ids)
    window = list(range(first - options.window, first))
    gold = needle(e, "evidence") or places
    question = [p for x in e.spans if x.role == "question" for p in range(x.start, x.end)]
    question = question or [p for x in e.spans if x.role == "query" for p in range(x.start, x.end)]
    out: dict[str, Matrix] = {}
    copy, position, topk, r2 = (np.zeros(attention.shape[:2]) for _ in range(4))
    value = needle(e)
    for layer, head in np.ndindex(*attention.shape[:2]):
        got, anywhere = set(), set()
        for step, row in enumerate(rows):
            order = np.argsort(-attention[layer, head, row, : row + 1], kind="stable")
            for rank, key in enumerate(order[: options.k]):
                if key in value and e.ids[key] == e.answer_ids[step]:
                    anywhere.add(e.ids[key])
                    if rank == 0:
                        got.add(e.ids[key])
            position[layer, head] += order[0] == value[step]
            for key in order[:n]:
                if key in places:
                    r2[layer, head] += attention[layer, head, row, key] / n
        distinct = len({e.ids[p] for p in value})
        copy[layer, head], topk[layer, head] = len(got) / distinct, len(anywhere) / distinct
    out |= {"copy": copy, "copy_position": position / len(value), "copy_topk": topk, "r2": r2}
    mass = attention[..., places].sum(-1)  # l h t
    out["needle_mass"] = mass[..., rows].mean(-1)
    out["anchor"] = mass[..., window].max(-1) if options.anchor == "max" else mass[..., window].mean(-1)
    out["temporal"] = out["needle_mass"] - mass[..., window[:-1]].mean(-1)
    out["spatial"] = contrast(attention[:, :, rows], rows, places)
    empty = e.ids[: question[0]] + null
    blank = torch.stack(eager(s, empty)[0]).numpy()[..., gold].sum(-1)
    out["qr"] = attention[..., gold].sum(-1)[..., question].mean(-1) - blank[..., question[0] :].mean(-1)
    shares = phi(s, e, options.unembed == "folded")
    out["dla"] = shares.sum(-1).mean(-1)
    out["locos"] = contrast(shares, rows, places)
    return out
