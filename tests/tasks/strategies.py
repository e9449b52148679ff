"""Parameters of the tasks, drawn for property tests; and sizes at which a uniform guesser is held against chance.

Every task in `interp.tasks.NAMES` has its entry in both (a test sees to it), or a reason in `NO_GUESS`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

seeds = st.integers(0, 2**31)
needles = st.fixed_dictionaries(
    {
        # Three needles, each in sixty small tokens, and their question have to fit.
        "length": st.integers(300, 450),
        "depth": st.one_of(
            st.just("uniform"), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=3)
        ),
        "kinds": st.lists(
            st.sampled_from(["names", "words", "numbers", "phrases"]), min_size=1, max_size=4, unique=True
        ),
        "needles": st.integers(1, 3),
        "haystack": st.sampled_from(["all", "train", "test", "soup"]),
        "n": st.just(3),
        "seed": seeds,
    }
)
induction = st.fixed_dictionaries(
    {
        "length": st.integers(8, 60),
        "n_answer": st.integers(1, 4),
        "lead": st.integers(0, 20),
        "n": st.just(4),
        "seed": seeds,
    }
)
mqar = st.one_of(
    st.fixed_dictionaries(
        {
            "length": st.integers(80, 120),
            "pairs": st.one_of(st.integers(2, 12), st.lists(st.integers(2, 12), min_size=2, max_size=3)),
            "passes": st.integers(1, 2),
            "filler": st.sampled_from(["pad", "random"]),
            "power": st.sampled_from([0.01, 1.0]),
            "n": st.just(4),
            "seed": seeds,
        }
    ),
    st.fixed_dictionaries(
        {
            "length": st.integers(80, 120),
            "pairs": st.integers(4, 12),
            "updates": st.sampled_from([None, 1, 4]),
            "variant": st.just("forgetting"),
            "n": st.just(4),
            "seed": seeds,
        }
    ),
    st.fixed_dictionaries(
        {
            "length": st.integers(150, 180),
            "pairs": st.sampled_from([4, 9, 16]),
            "passes": st.integers(1, 2),
            "variant": st.just("compositional"),
            "n": st.just(4),
            "seed": seeds,
        }
    ),
)
set_intersection = st.fixed_dictionaries(
    {
        "short": st.integers(2, 6),
        "long": st.integers(6, 40),
        "order": st.sampled_from(["short_first", "long_first", "both"]),
        "n": st.just(4),
        "seed": seeds,
    }
)
joint_recall = st.fixed_dictionaries(
    {
        "contexts": st.one_of(st.integers(2, 6), st.lists(st.integers(2, 6), min_size=2, max_size=2)),
        "keys": st.integers(2, 6),
        "values": st.integers(2, 20),
        "n": st.just(4),
        "seed": seeds,
    }
)
facts = st.fixed_dictionaries({"shots": st.integers(0, 4), "n": st.just(12), "seed": seeds})
prose = st.fixed_dictionaries(
    {"prompt": st.integers(1, 100), "answer": st.integers(1, 50), "n": st.just(4), "seed": seeds}
)
several = {
    # Four statements in fifty small tokens each, and their question have to fit.
    "length": st.integers(400, 500),
    "haystack": st.sampled_from(["all", "train", "test", "soup"]),
    "n": st.just(3),
    "seed": seeds,
}
depths = st.one_of(st.just("uniform"), st.floats(0, 1))
multi_key = st.fixed_dictionaries({**several, "needles": st.integers(2, 3), "depth": depths})
# Room for six statements and a solved question with as many.
several = {**several, "length": st.integers(700, 800), "shots": st.integers(0, 1)}
multi_value = st.fixed_dictionaries({**several, "values": st.integers(2, 4), "others": st.integers(0, 2)})
multi_hop = st.fixed_dictionaries(
    {
        **several,
        "hops": st.integers(0, 2),
        "chains": st.integers(2, 3),
        "style": st.sampled_from(["variables", "story"]),
        "ask": st.sampled_from(["value", "chain"]),
    }
)
paraphrase = st.fixed_dictionaries({**several, "names": st.integers(2, 4), "depth": depths})
passkey = st.fixed_dictionaries(
    {
        "length": st.integers(200, 300),
        "depth": depths,
        "digits": st.integers(3, 8),
        "shots": st.integers(0, 1),
        "n": st.just(3),
        "seed": seeds,
    }
)
ruler_niah = st.fixed_dictionaries(
    {
        "setting": st.sampled_from(
            [
                "single_1",
                "single_2",
                "single_3",
                "multikey_1",
                "multikey_2",
                "multikey_3",
                "multivalue",
                "multiquery",
            ]
        ),
        "length": st.integers(450, 550),
        "depth": depths,
        "haystack": st.sampled_from(["all", "train", "test", "soup"]),
        "n": st.just(3),
        "seed": seeds,
    }
)
variable_tracking = st.fixed_dictionaries(
    {
        "length": st.integers(600, 700),
        "hops": st.integers(0, 2),
        "chains": st.integers(2, 3),
        "names": st.sampled_from(["words", "letters"]),
        "ask": st.sampled_from(["value", "chain"]),
        "shots": st.integers(0, 1),
        "n": st.just(3),
        "seed": seeds,
    }
)
kinship = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 3),
        "families": st.integers(2, 3),
        "ask": st.sampled_from(["eldest", "ancestor", "descendant"]),
        "grandparents": st.booleans(),
        "length": st.one_of(st.none(), st.integers(700, 800)),
        "haystack": st.sampled_from(["all", "soup"]),
        "shots": st.integers(0, 1),
        "n": st.just(3),
        "seed": seeds,
    }
)
reading = st.fixed_dictionaries({"shots": st.integers(0, 3), "n": st.just(4), "seed": seeds})
arithmetic = st.fixed_dictionaries(
    {
        "terms": st.integers(2, 4),
        "largest": st.sampled_from([9, 20, 99]),
        "style": st.sampled_from(["direct", "cot"]),
        "form": st.sampled_from(["digits", "words"]),
        "shots": st.integers(0, 3),
        "n": st.just(4),
        "seed": seeds,
    }
)
ioi = st.fixed_dictionaries(
    {
        "families": st.sampled_from([None, "telling", ["giving", "trading"]]),
        "order": st.sampled_from(["both", "ABBA", "BABA"]),
        "n": st.just(4),
        "seed": seeds,
    }
)
laundry = st.fixed_dictionaries(
    {
        "items": st.one_of(st.integers(2, 20), st.lists(st.integers(2, 8), min_size=1, max_size=4)),
        "families": st.sampled_from(["A", "B", ["A", "B"]]),
        "n": st.just(4),
        "seed": seeds,
    }
)
colored_objects = st.fixed_dictionaries(
    {"shots": st.integers(0, 6), "objects": st.integers(2, 4), "n": st.just(4), "seed": seeds}
)
conflict = st.fixed_dictionaries(
    {
        "counter": st.integers(1, 2),
        "memory": st.integers(0, 2),
        "irrelevant": st.integers(0, 2),
        "order": st.sampled_from(["both", "memory_first", "counter_first"]),
        "n": st.just(3),
        "seed": seeds,
    }
)
priors = {"prior": st.sampled_from(["both", "high", "low"]), "n": st.just(4), "seed": seeds}
acronym = st.fixed_dictionaries({**priors, "shots": st.integers(0, 3)})
shift_cipher = st.fixed_dictionaries({**priors, "shots": st.integers(0, 3), "shift": st.integers(1, 25)})
counting = st.fixed_dictionaries({**priors, "shots": st.integers(0, 2), "largest": st.just(100)})
order = st.one_of(
    st.fixed_dictionaries(
        {
            "items": st.integers(2, 12),
            "segment": st.integers(5, 12),
            "haystack": st.sampled_from(["all", "train", "test", "soup"]),
            "shots": st.integers(0, 1),
            "n": st.just(4),
            "seed": seeds,
        }
    ),
    st.fixed_dictionaries(
        {
            "form": st.just("words"),
            "answer": st.sampled_from(["label", "word"]),
            "items": st.integers(2, 16),
            "shots": st.integers(0, 2),
            "n": st.just(4),
            "seed": seeds,
        }
    ),
)
biographies = st.fixed_dictionaries(
    {
        "form": st.sampled_from(["standard", "paraphrase", "pronoun", "multihop", "unstated"]),
        "people": st.integers(4, 6),
        "attributes": st.integers(1, 6),
        "density": st.sampled_from([0, 0.5, 1]),
        "shots": st.integers(0, 1),
        "n": st.just(4),
        "seed": seeds,
    }
)
updates = st.fixed_dictionaries(
    {
        "keys": st.integers(1, 4),
        "updates": st.integers(2, 8),
        "order": st.sampled_from(["interleaved", "blocks"]),
        "n": st.just(4),
        "seed": seeds,
    }
)
consolidation = st.fixed_dictionaries(
    {
        "facts": st.integers(3, 5),
        "versions": st.integers(2, 3),
        "hops": st.integers(1, 2),
        "order": st.sampled_from(["shuffled", "ascending"]),
        "n": st.just(4),
        "seed": seeds,
    }
)
kept = {"shots": st.integers(0, 2), "n": st.just(4), "seed": seeds}
serial_recall = st.fixed_dictionaries(
    {**kept, "items": st.integers(3, 10), "probe": st.sampled_from(["position", "after"])}
)
complex_span = st.fixed_dictionaries(
    {
        **kept,
        "items": st.integers(2, 6),
        "load": st.integers(0, 2),
        "judgement": st.sampled_from(["parity", "size", "sum"]),
    }
)
updating = st.fixed_dictionaries({**kept, "items": st.integers(2, 4), "updates": st.integers(1, 4)})
change_detection = st.fixed_dictionaries(
    {**kept, "items": st.integers(2, 9), "change": st.sampled_from(["item", "order"])}
)
questions = st.sampled_from(
    ["where_person", "where_object", "where_was_object", "yes_no", "count", "list", "give"]
)
ways = st.lists(
    st.sampled_from(["coreference", "conjunction", "company", "negation"]), max_size=4, unique=True
)
stories = st.fixed_dictionaries(
    {
        "facts": st.none(),
        "question": questions,
        "sentences": st.integers(7, 14),
        "people": st.integers(3, 5),
        "places": st.integers(3, 5),
        "things": st.integers(4, 6),
        "style": ways,
        "shots": st.integers(0, 2),
        "n": st.just(4),
        "seed": seeds,
    }
)

PARAMS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "niah": needles,
    "induction": induction,
    "mqar": mqar,
    "joint_recall": joint_recall,
    "set_intersection": set_intersection,
    "facts": facts,
    "prose": prose,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "multi_hop": multi_hop,
    "paraphrase": paraphrase,
    "passkey": passkey,
    "ruler_niah": ruler_niah,
    "variable_tracking": variable_tracking,
    "kinship": kinship,
    "reading": reading,
    "arithmetic": arithmetic,
    "ioi": ioi,
    "laundry": laundry,
    "colored_objects": colored_objects,
    "conflict": conflict,
    "acronym": acronym,
    "shift_cipher": shift_cipher,
    "counting": counting,
    "updates": updates,
    "consolidation": consolidation,
    "serial_recall": serial_recall,
    "complex_span": complex_span,
    "updating": updating,
    "change_detection": change_detection,
    "order": order,
    "stories": stories,
    "biographies": biographies,
}
"""Parameters of each task but `niah_grid`, which has tests of its own."""

GUESSED: list[tuple[str, dict[str, Any]]] = [
    ("niah", {"length": 200, "n": 40, "needles": 2}),
    ("facts", {"n": 600}),
    ("facts", {"n": 73, "relations": "atomic_number", "templates": 0}),
    ("induction", {"n": 100, "length": 12}),
    ("mqar", {"n": 64}),
    ("joint_recall", {"n": 64}),
    ("set_intersection", {"n": 64}),
    ("multi_key", {"n": 30}),
    ("multi_value", {"n": 30}),
    ("multi_hop", {"n": 30, "chains": 4}),
    ("paraphrase", {"n": 30}),
    ("passkey", {"n": 30}),
    ("ruler_niah", {"n": 30, "setting": "multikey_1"}),
    ("variable_tracking", {"n": 30, "chains": 4}),
    ("kinship", {"n": 30}),
    ("reading", {"n": 60}),
    ("arithmetic", {"n": 60}),
    ("laundry", {"n": 60, "items": [4, 5, 6]}),
    ("colored_objects", {"n": 60, "objects": 4}),
    ("acronym", {"n": 60}),
    ("shift_cipher", {"n": 60}),
    ("counting", {"n": 60}),
    ("stories", {"n": 60}),
    ("stories", {"n": 40, "facts": None, "question": "list"}),
    ("updates", {"n": 60}),
    ("consolidation", {"n": 60, "versions": 4}),
    ("serial_recall", {"n": 60}),
    ("complex_span", {"n": 60, "items": 5}),
    ("updating", {"n": 60}),
    ("biographies", {"n": 60, "people": 8}),
]
"""Tasks and sizes for the guesser."""

NO_GUESS = {
    "niah_grid": "niah's needles",
    "prose": "an open set",
    "ioi": "two names",
    "conflict": "two answers",
    "change_detection": "two answers",
    "order": "two answers",
}
"""Tasks whose chance the guesser is not held against, and why."""
