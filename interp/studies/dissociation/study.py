"""The study of double dissociation, part by part: from a spec to a folder of tables, going on where it stopped.

Facts that the model knows are split by subject: `fit` (what layers and neurons are chosen on), `held` (other subjects,
same relations), `other` (other subjects, other relations) and `kin` (subjects of `fit` in other relations). Cuts:
`fact layers 1`, `fact layers 3`, `fact window 5`, `fact neurons`, `retrieval heads`. Tasks: the sets of facts, `needle`,
`induction`, `prose`. Scopes: `content` (every token but the first, where models keep a sink of attention: what is cut
there hurts everything), `place` (one token: the last of a subject or of a needle's query, the one to be continued, the
last of a passage), `all`. Metrics: `accuracy`, `probability` (of the answer, geometric mean over its tokens), `nll`; a
loss is the share of the clean model's that is gone, of `nll` the nats more. Intervals (95 %, columns `_lo` and `_hi`)
are over clusters (subjects, haystacks, topics), and where controls take part over their sets, too.

Tables, and what is a row of each:

facts: a question. relation, subject, object, template, known, surface, use (fit, other, ''), split, taken (measured).
census: a relation. relation, asked, known, subjects (known in a wording), accuracy, ci_lo, ci_hi, use.
layers: a layer. Columns of `FactMLPs.layers_` (of the fit facts), rank, chosen (in the largest set of best layers),
    window (in the widest window).
neurons: a neuron. component, layer, score, se, n, rank, chosen. fact_neurons: a fit fact and a neuron measured on it;
    columns of `FactMLPs.neurons_`, relation.
heads: a head. component, layer, head, score, rank, chosen.
cells: a task, cut or control, and example. task, mechanism, scope, condition (clean, cut, control), draw, example,
    cluster, relation, accuracy, nll, probability.
profile: a layer cut alone, scope, task, metric. layer, scope, task, metric, clean, value, loss, loss_lo, loss_hi, n,
    n_clusters, status.
vital: a layer, scope, metric. layer, scope, metric, aie, aie_lo, aie_hi, score, rank, chosen, fact_loss (held facts)
    with fact_lo and fact_hi, other_loss (other relations), off_task (of needle, induction, prose: the gap is least),
    off_loss with off_lo and off_hi, gap (fact_loss - off_loss), gap_lo, gap_hi, passes, verdict.
sink: a layer, task, metric. layer, task, metric, loss_all, loss_content, first (their difference), first_lo, first_hi.
neuron_facts: a group of facts, metric: facts asked while neurons of one fact are cut at its place. group (own, other
    wording, same relation, same subject, other), metric, clean, value, loss, loss_lo, loss_hi, control_mean, excess,
    excess_lo, excess_hi, gap (loss of `own` - of the group), gap_lo, gap_hi, n, n_clusters (subjects), n_controls.
effects: a task, mechanism, scope, condition, draw, metric. task, role, mechanism, scope, condition, draw, k,
    components, mode, reference, match, match_gap, n_distinct, metric, clean, value, loss, loss_lo, loss_hi, p_cluster,
    n, n_clusters, status; of cuts: control_mean, control_sd, rank, n_controls, excess, excess_lo, excess_hi.
dissociation: a fact mechanism, scope, fact task, context task, metric. mechanism, scope, fact_task, context_task,
    metric, mlp_fact, mlp_context (losses), mlp_gap (fact - context), mlp_beyond (that gap beyond the controls'),
    heads_fact, heads_context, heads_gap (context - fact), heads_beyond, interaction (mlp_gap + heads_gap), primary,
    verdict; gaps, beyonds and interaction with _lo and _hi.

A dissociation `holds` where both gaps are above zero, as they are and beyond controls, by their intervals; where one
side's are, the verdict is `facts only` or `context only`; else it is `does not hold`. `primary` marks the row that was
named before anything was measured: the largest set of best layers, `content`, `held` against `needle`, `probability`.
A layer `passes` as a fact store where its AIE is above zero and it loses more of the held facts than of each other task;
its verdict is then `store`, else `vital` where one of those tasks is hurt, else `none`.
"""
