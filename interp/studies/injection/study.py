"""The study of memorization in language models, part by part: from a spec to a folder of tables.

There are two subjects: the model, and a small one that is trained from nothing in a minute, so that all it ever read is
known. What they hold is put there (`interp.intervene.inject`) or was there. A *memory* is a set of sequences, of which
half (A) are what is located and the others (B) are held out:

| memory | sequences | known neurons |
|---|---|---|
| `injected 0.01` ... | each for itself in a model of its own, by the share of its neurons | yes |
| `together` | small model: all in one, by a share of its neurons | yes |
| `finetuned` | all in one model, by a low-rank change of all its down projections | no |
| `recited` | passages that the model recites as it comes (the small model has none) | no |

| table | one row | columns |
|---|---|---|
| `injections` | a sequence in a model of its own | subject, injected (share of neurons), seed, item, known (neurons), units (of all), before, after (nats a token), steps, exact |
| `recall` | an injection, method, part and number taken | subject, injected, seed, item, of `recall_at_k` (part, k, share, known, units, recall, chance, auc), method |
| `recovery` | a mean of them | subject, injected, method, part (`ff_out[3]`, `all`), share (NaN: as many as are known), recall, ci_lo, ci_hi, chance, auc, n |
| `completeness` | an item's integrated gradients | subject, memory, item, path, total, cost, gap |
| `screen` | a passage and prefix | subject, of `screen` (name, group, prefix, exact, run, hits, nll, left ...) |
| `memories` | a sequence of a memory | subject, memory, item, group (targeted: A, held_out: B, never), nll_without, nll, exact, hits |
| `doses` | an edit, its dose and a measure | subject, memory, edit, family (none, units, weights, directions, curvature, rewritten, known, control), control (bool), dose (share of the weights of the down projections that is changed), asked, norm (of the change), measure, value, ci_lo, ci_hi, n |
| `chosen` | an edit, as it is measured on | subject, memory, edit, asked, dose, targeted, prose, erases, attacked (bool) |
| `edits` | an edit at its chosen dose and a measure | as `doses` |
| `edit_items` | an edit and a sequence | subject, memory, edit, item, group, variant, exact, accuracy, similarity, hits, nll, run |
| `prefixes` | an edit and a way to write the prefix | subject, memory, edit, variant (given, shorter, longer, first dropped, one replaced), measure (exact, hits), value, ci_lo, ci_hi, n |
| `contrasts` | an edit less random neurons of equal number | subject, memory, edit, measure, value, ci_lo, ci_hi, p, n (sequences) |
| `attacks` | a search of a soft prompt | subject, memory, condition (original: without the memory, memorized, an edit), of `soft_prompts` |
| `attacked` | a rate under attack | subject, memory, condition, group (targeted, never), metric (before, attacked, gained, steps, work), value, ci_lo, ci_hi, n_items, n |
| `work` | a point of a curve | subject, memory, condition, group, steps, extracted, items |
| `exposures` | small model: a sequence at a step | of `exposures` (step, phase, name, exposures, nll, gain, recognition, recall, hits) |
| `exposure_curves` | a number of exposures, step and measure | step, phase (before, shown, later), curve (phase and step), exposures, measure (recognition, recall, hits, gain, retention), value, ci_lo, ci_hi, n |
| `findings` | a claim | finding, source, subject, memory, statistic, value, ci_lo, ci_hi, n, rule, verdict |

Measures: `targeted`, `held_out` (share of A, of B that is recited whole), `targeted_hits`, `held_out_hits` (share of
their tokens that are the likeliest), `accuracy`, `similarity` (of A, let go on alone; similarity is 1 - Levenshtein
distance over length), `never` (nats a token of sequences never seen, less those before the edit), `prose` (perplexity of
prose over that before). Sequences, passages or injections are resampled. Running it again goes on where it stopped.
"""  # noqa: E501
