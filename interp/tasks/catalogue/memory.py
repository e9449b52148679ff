"""Tasks of interference, of working memory, of knowledge and of lists; and those that should not move."""

from __future__ import annotations

from interp.tasks.catalogue.info import TaskInfo

INTERFERENCE: tuple[TaskInfo, ...] = (
    TaskInfo(
        "conflict",
        "interp.tasks.conflict:Conflict",
        "a fact asked for behind statements of another answer: memory against context",
        "facts compiled for this project; after Xie et al. (arXiv 2305.13300)",
        {
            "counter": 1,
            "memory": 0,
            "irrelevant": 0,
            "order": "both",
            "relations": None,
            "n": 64,
            "seed": 0,
        },
        ladder={"counter": (1, 2)},
        family="interference",
    ),
    TaskInfo(
        "updates",
        "interp.tasks.updates:Updates",
        "keys whose values change again and again; the answer is the last value of one",
        "wordings written for this project; after PI-LLM (arXiv 2506.08184)",
        {"keys": 3, "updates": 4, "order": "interleaved", "n": 64, "seed": 0},
        ladder={"updates": (2, 4, 8, 16, 32), "keys": (1, 2, 3, 4)},
        family="interference",
    ),
    TaskInfo(
        "consolidation",
        "interp.tasks.consolidation:Consolidation",
        "numbered facts that contradict each other; the one with the highest number holds",
        "facts written for this project; after MemoryAgentBench (arXiv 2507.05257)",
        {"facts": 3, "versions": 2, "hops": 1, "order": "shuffled", "n": 64, "seed": 0},
        ladder={
            "facts": (2, 4, 8),
            "versions": (2, 3, 4),
            "order": ("shuffled", "ascending"),
            "hops": (1, 2),
        },
        family="interference",
    ),
)

WORKING_MEMORY: tuple[TaskInfo, ...] = (
    TaskInfo(
        "serial_recall",
        "interp.tasks.serial_recall:SerialRecall",
        "a list of words; the answer is the one at a place, or after another",
        "wordings and words written for this project; after WorM (arXiv 2307.10768)",
        {"items": 6, "probe": "position", "shots": 0, "n": 64, "seed": 0},
        ladder={"items": (3, 4, 6, 8, 12), "probe": ("position", "after")},
        family="working memory",
    ),
    TaskInfo(
        "complex_span",
        "interp.tasks.complex_span:ComplexSpan",
        "words to remember with judgements about numbers between them",
        "wordings and words written for this project; after WorM (arXiv 2307.10768)",
        {"items": 4, "load": 1, "judgement": "parity", "shots": 0, "n": 64, "seed": 0},
        ladder={
            "items": (2, 4, 6, 8),
            "load": (0, 1, 2, 4),
            "judgement": ("parity", "size", "sum"),
        },
        family="working memory",
    ),
    TaskInfo(
        "updating",
        "interp.tasks.updating:Updating",
        "amounts that go up and down; the answer is how many there are in the end",
        "wordings written for this project; after WorM (arXiv 2307.10768)",
        {"items": 2, "updates": 1, "shots": 0, "n": 64, "seed": 0},
        ladder={"updates": (1, 2, 4), "items": (2, 3, 4)},
        family="working memory",
    ),
    TaskInfo(
        "change_detection",
        "interp.tasks.change_detection:ChangeDetection",
        "a list shown twice; the answer is whether it has changed",
        "wordings and words written for this project; after WorM (arXiv 2307.10768)",
        {"items": 4, "change": "item", "shots": 2, "n": 64, "seed": 0},
        ladder={"items": (2, 4, 8, 12), "change": ("item", "order")},
        family="working memory",
    ),
)

KNOWLEDGE: tuple[TaskInfo, ...] = (
    TaskInfo(
        "facts",
        "interp.tasks.facts:Facts",
        "closed-book facts of many relations, in several wordings",
        "closed-book facts compiled for this project, as of 2024",
        {"relations": None, "templates": None, "shots": 0, "n": None, "seed": 0},
        family="knowledge",
    ),
    TaskInfo(
        "acronym",
        "interp.tasks.prior:Acronym",
        "the first letters of four words, which are a likely answer or not",
        "words chosen for this project; after Zhang et al. (arXiv 2504.12585)",
        {"prior": "both", "shots": 2, "n": 64, "seed": 0},
        family="knowledge",
    ),
    TaskInfo(
        "shift_cipher",
        "interp.tasks.prior:ShiftCipher",
        "four letters moved along the alphabet, which spell a likely answer or not",
        "words chosen for this project; after McCoy et al. (arXiv 2309.13638)",
        {"shift": 1, "prior": "both", "shots": 2, "n": 64, "seed": 0},
        ladder={"shift": (1, 2, 3)},
        family="knowledge",
    ),
    TaskInfo(
        "counting",
        "interp.tasks.prior:Counting",
        "how often a word stands in a list: a round number, or one beside it",
        "lists generated for this project; after McCoy et al. (arXiv 2309.13638)",
        {"largest": 80, "prior": "both", "shots": 0, "n": 64, "seed": 0},
        family="knowledge",
    ),
)

LISTS_AND_NAMES: tuple[TaskInfo, ...] = (
    TaskInfo(
        "ioi",
        "interp.tasks.ioi:IOI",
        "two names, one of them again; the answer is the other one",
        "sentences and names written for this project; after Wang et al. (arXiv 2211.00593)",
        {"families": None, "order": "both", "n": 64, "seed": 0},
        family="lists and names",
    ),
    TaskInfo(
        "laundry",
        "interp.tasks.laundry:Laundry",
        "a list, and all but one of its things again; the answer is the one left over",
        "lists and wordings written for this project; no replication of Merullo et al. (arXiv 2406.09519)",
        {"items": (2, 3, 4, 5, 6), "families": ("A", "B"), "n": 64, "seed": 0},
        ladder={"items": (2, 4, 6, 8, 12)},
        family="lists and names",
    ),
    TaskInfo(
        "colored_objects",
        "interp.tasks.colored_objects:ColoredObjects",
        "several objects, each with a color, and the question for the color of one",
        "scenes written for this project; after Merullo et al. (arXiv 2310.08744)",
        {"shots": 1, "objects": 3, "n": 64, "seed": 0},
        ladder={"objects": (2, 3, 4)},
        family="lists and names",
    ),
)

OTHER: tuple[TaskInfo, ...] = (
    TaskInfo(
        "arithmetic",
        "interp.tasks.arithmetic:Arithmetic",
        "sums of several numbers, at once or step by step: no copying solves them",
        "additions generated for this project; steps after Wei et al. (arXiv 2201.11903)",
        {
            "terms": 2,
            "largest": 20,
            "style": "direct",
            "form": "digits",
            "shots": 4,
            "n": 64,
            "seed": 0,
        },
        ladder={"terms": (2, 3, 4)},
        family="controls",
    ),
    TaskInfo(
        "prose",
        "interp.tasks.prose:Prose",
        "natural prose to continue: the cost of a cut off target",
        "Python's documentation (pydoc_data.topics), or a file of the user's",
        {"prompt": 128, "answer": 64, "file": None, "n": 16, "seed": 0},
        family="controls",
    ),
)
