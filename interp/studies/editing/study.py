"""The editing study, part by part: from a spec to a folder of tables, going on where it stopped.

Facts that the model knows (zero-shot, in the wording that is edited) get another answer. Layers are chosen on facts of
their own, and each of the edited facts is written alone by ROME, then many at once by MEMIT, and taken back.

facts       relation, asked, known, train, edited
records     record, relation, split (train, edit), text (prompt and new answer), true, paraphrases, neighbours (numbers)
scan        train facts by ROME layer by layer: record, relation, kind (efficacy, paraphrase, neighbour), prompt, state
            (before, after), rule, alone, p_new, p_true, success, top, magnitude, layer, nll (end of the search)
layers      of the scan: layer, ES, PS, NS, ET, PT, NT, EM, PM, NM, S, n, chosen (the highest S; of equal ones the
            largest EM + PM + NM), ends (MEMIT's windows end there)
effects     causal traces of the train facts at the subject's last token: record, relation, layer, kind (mlp_out,
            resid_post), corruption (noise, subject_swap), metric (probability, logit_diff), te, effect, share
localisation  success of edits against effects: trace (kind), corruption, metric, kind (of prompt), n, records, rho,
            within, ci_lo, ci_hi, r2_layer, r2_both, gain, p (of the gain: effects shuffled over records)
windows     MEMIT on all train facts at once: end, layers, weight, ES ... S, n, chosen
scores      columns of the scan but layer and nll, with method (rome; rome together: all edits of rome at once; memit;
            other fact: rome's edit of another record; random value: rome's, writing a random direction of that length)
            and at_once (edits that are on)
scoreboard  method, at_once, state, measure (ES EM ET PS PM PT NS NM NT S), value, ci_lo, ci_hi (records), n
changes     method, at_once, measure, before, after, delta, ci_lo, ci_hi (records, paired), n
edits       each edit by ROME: record, relation, layer, steps, nll, norm (of what is added, over what was there), bytes
            (the file), dense_bytes (the whole matrix), loaded (the file gives the same edit), in_weights (largest
            difference of logits between edited weights and the edit as an intervention), says (greedy decoding gives
            the new answer from the edited weights), restored (all weights have the bits that they had); and of MEMIT's
drift       method, at_once, group (number of the edit), passage, nll_before, nll_after (nats a token)
fluency     method, at_once, record, opening, state, entropy (bits)
cost        method, what, seconds (median), n, forwards (in passes of the edited prompt); differs from run to run
findings    finding, statistic, value, ci_lo, ci_hi, n, verdict: holds if the interval lies above 0, does not if it lies
            below, else undecided
"""
