"""From a spec to a folder of tables: does a pipeline memorize, is that deleted by cutting, and can it be got back?

Pictures are memorized by a pipeline that is trained on digits (`interp.models.zoo.digits`). Half of them, A, is what is
located; the other half, B, is held out. Controls have a word of their own as well, but many pictures; `unseen` pictures
were never trained on. `seed` is always the training's.

| table | one row | columns |
|---|---|---|
| `subjects` | a trained pipeline | seed, role (model, oracle), name, fingerprint, train_images, held_out, threshold, threshold_encoder, judge (accuracy of the classifier on held-out pictures) |
| `samples` | a sample of an item | seed, role, guidance, of `extraction` (item, group, split, exposures, sample, own, nearest, top1, own_ratio, ratio, extracted, extracted_ratio, copied), extracted_encoder |
| `existence` | a rate of a group | seed, role, guidance, group, exposures, metric (extracted_image: MR, extracted_any, extracted_most, copied_..., extracted_ratio_..., extracted_encoder_...), value, ci_lo, ci_hi, n_items, n |
| `signals` | a prompt and sampling seed | seed, role, group (memorized, control, base), item, prompt, sample, first, all, one_step, similarity, spread |
| `detection` | a signal and what it is told from | seed, role, signal, against (control, base), auc, auc_lo, auc_hi, tpr, tpr_lo, tpr_hi, threshold, n_positive, n_negative, prompts_positive, prompts_negative |
| `copying` | a set of samples | seed, set (memorized, ordinary, mixed, held-out), extracted (share that copies a training picture), authentic, c_t, n |
| `doses` | an edit, its dose and a measure | seed, edit, family (none, located, control), control (bool), dose (share of the parts' weights that is changed), asked, norm (of the change), measure, value, ci_lo, ci_hi, n |
| `chosen` | an edit, as it is measured on | edit, asked, dose, targeted (replication of A on choosing seeds), erases, of (edit that its dose is taken from) |
| `edits` | an edit at its chosen dose and a measure | as `doses`, and rows (UNet rows that finding it took), seconds |
| `edit_items` | an edit and an item | seed, edit, item, group, split, extracted (share of samples), own |
| `contrasts` | an edit less another | seed, edit, against, measure, value, ci_lo, ci_hi, p, n (items) |
| `overlap` | a statistic of A against B | seed, method (wanda reference, wanda corrected, subspace), statistic (overlap, excess), value, mean, lo, hi, p, draws |
| `overlaps` | a pair of sets in a deal | seed, method, a, b (A, B, controls), overlap, independent, draw (-1: the sets themselves) |
| `coverage` | sizes of a union | seed, method (wanda, nemo), k, kind (item, control), covered, ci_lo, ci_hi, chance, n |
| `attacks` | a search | seed, condition (original, an edit, tuned, oracle), of `adversarial_embeddings` |
| `recovery` | a rate under attack | seed, condition, group (targeted, held_out, control, unseen), metric (before, attacked, attacked_any, gained, ...), value, ci_lo, ci_hi, n_items, n |
| `work` | a point of a curve | seed, condition, group, steps, extracted, items |
| `tuning` | a round of adversarial fine-tuning | seed, round, attacked, surrogate, keep, work |
| `exposures` | an item at a point of a training | seed, of `trajectory` |
| `exposure_curves` | a number of exposures and a measure | seed, part, curve (graded, early), exposures, measure (recognition, recall), value, ci_lo, ci_hi, n |
| `pictures` | a picture | seed, item, group, split, state (original, before, after an edit, attacked, oracle ...), image (its pixels, row by row), height, width, distance, replicated |
| `findings` | a claim | finding, source, statistic, value, ci_lo, ci_hi, verdict, rule, n, n_seeds |

Measures: `targeted` (MR of A), `held_out` (of B), `retained` (of other memorized items: many captions, a template, shown
100 times or more), `control` (of controls), `alignment` (share of ordinary samples that show the digit asked for),
`frechet` (distance of ordinary samples to held-out pictures in the space of a trained encoder, less its floor), `loss`
(denoising error on held-out pictures). Running it again goes on where it stopped.
"""  # noqa: E501
