"""The tasks that ship, by family: what each is, where it comes from, its parameters, and the ladder it is measured on.

Nothing is imported here: `TaskInfo.load` imports a task when it is first asked for. Ladders were fixed before any model
was measured on them; `interp tasks run` shows every rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from interp.errors import UsageError

LENGTHS = (256, 512, 1024)
"""Tokens of a prompt, of tasks that are measured by length."""


@dataclass(frozen=True)
class TaskInfo:
    """What is known about a task without importing it.

    Attributes:
        target: `module:attribute`, or the class or function itself.
        params: parameters with their defaults.
        ladder: sizes that it is measured at, by parameter: one parameter at a time, the others as they are by default.
            Empty: it has one size.
        natural: whether it is asked in a natural language; else in bare symbols.
        family: the heading that it stands under.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)
    ladder: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    natural: bool = True
    family: str = "yours"

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as why:
            raise UsageError(f"task {self.name}: '{self.target}' cannot be imported: {why}") from None


ASSOCIATIVE: tuple[TaskInfo, ...] = (
    TaskInfo(
        "induction",
        "interp.tasks.induction:Induction",
        "repeated random tokens; the answer followed the last token earlier on",
        "repeated random tokens, after Olsson et al. (arXiv 2209.11895)",
        {"length": 32, "n_answer": 1, "lead": 8, "n": 64, "seed": 0},
        ladder={"length": (8, 16, 32, 64, 128)},
        natural=False,
        family="associative recall",
    ),
    TaskInfo(
        "mqar",
        "interp.tasks.mqar:MQAR",
        "pairs of a key and a value as bare tokens, then each key again, to be answered by its value",
        "Zoology's multi-query associative recall, Arora et al. (arXiv 2312.04927)",
        {
            "length": 64,
            "pairs": 8,
            "variant": "standard",
            "updates": None,
            "passes": 1,
            "filler": "pad",
            "power": 0.01,
            "n": 64,
            "seed": 0,
        },
        ladder={"pairs": (2, 4, 8, 16), "length": (64, 128, 256)},
        natural=False,
        family="associative recall",
    ),
    TaskInfo(
        "joint_recall",
        "interp.tasks.joint_recall:JointRecall",
        "bare tokens: contexts with keys, each key with a value that depends on the context",
        "joint recall, Zhan et al. (HAX, arXiv 2507.00449)",
        {"contexts": 4, "keys": 4, "values": 16, "n": 64, "seed": 0},
        ladder={"contexts": (2, 4, 8), "keys": (2, 4, 8)},
        natural=False,
        family="associative recall",
    ),
    TaskInfo(
        "set_intersection",
        "interp.tasks.set_intersection:SetIntersection",
        "bare tokens: two lists that share one token, which is the answer",
        "set intersection, Arora et al. (arXiv 2407.05483)",
        {"short": 4, "long": 16, "order": "both", "n": 64, "seed": 0},
        ladder={"long": (8, 32, 128), "short": (2, 4, 8)},
        natural=False,
        family="associative recall",
    ),
)

LONG_CONTEXT: tuple[TaskInfo, ...] = (
    TaskInfo(
        "niah",
        "interp.tasks.niah:Niah",
        "a key-value sentence in natural prose, and the question for its value",
        "prose, keys and values written for this project; after Wu et al. (arXiv 2404.15574) and RULER",
        {
            "length": 512,
            "depth": "uniform",
            "kinds": ("names", "words", "numbers", "phrases"),
            "needles": 1,
            "haystack": "all",
            "n": 64,
            "seed": 0,
        },
        ladder={"length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "niah_grid",
        "interp.tasks.grid:NiahGrid",
        "needles over a grid of lengths and depths, laid out so that prefills are shared",
        "needles and prose of niah; grid after Wu et al. (arXiv 2404.15574)",
        {
            "lengths": (256, 512, 1024, 2048),
            "depths": 5,
            "needles": 4,
            "haystacks": None,
            "kinds": ("names", "words", "numbers", "phrases"),
            "haystack": "all",
            "mode": "exact",
            "n": None,
            "seed": 0,
        },
        family="long context",
    ),
    TaskInfo(
        "multi_key",
        "interp.tasks.multi:MultiKey",
        "one of several key-value sentences of one form in natural prose",
        "needles and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "depth": "uniform",
            "kinds": ("names", "words", "numbers", "phrases"),
            "needles": 4,
            "haystack": "all",
            "n": 64,
            "seed": 0,
        },
        ladder={"needles": (2, 4, 8), "length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "multi_value",
        "interp.tasks.multi:MultiValue",
        "all values of one key, listed in the order of the text",
        "statements and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "values": 3,
            "others": 1,
            "kinds": ("names", "words", "numbers"),
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"values": (2, 3, 4), "length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "multi_hop",
        "interp.tasks.hops:MultiHop",
        "the value at the end of a chain of statements, in sentences or as variables",
        "chains and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "hops": 1,
            "chains": 3,
            "style": "story",
            "ask": "value",
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"hops": (0, 1, 2, 3), "length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "paraphrase",
        "interp.tasks.paraphrase:Paraphrase",
        "which of several persons is meant, by an association that no word of the context gives away",
        "associations written for this project; after NoLiMa (arXiv 2502.05167)",
        {
            "length": 512,
            "depth": "uniform",
            "relations": None,
            "names": 4,
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "passkey",
        "interp.tasks.passkey:Passkey",
        "a number, said twice, among idle sentences that repeat",
        "sentences written for this project; after Mohtashami and Jaggi (arXiv 2305.16300)",
        {"length": 512, "depth": "uniform", "digits": 5, "shots": 0, "n": 64, "seed": 0},
        ladder={"length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "ruler_niah",
        "interp.tasks.ruler:RulerNiah",
        "RULER's eight settings of needles: in noise, in prose, among needles; one value or several",
        "wordings, words and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "setting": "single_2",
            "length": 512,
            "depth": "uniform",
            "haystack": "all",
            "n": 64,
            "seed": 0,
        },
        ladder={
            "setting": (
                "single_1",
                "single_2",
                "single_3",
                "multikey_1",
                "multikey_2",
                "multikey_3",
                "multivalue",
                "multiquery",
            ),
            "length": LENGTHS,
        },
        family="long context",
    ),
    TaskInfo(
        "variable_tracking",
        "interp.tasks.tracking:VariableTracking",
        "the value that a variable has by way of others, among assignments and noise",
        "wordings and noise written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "hops": 2,
            "chains": 3,
            "names": "words",
            "ask": "value",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"hops": (0, 1, 2, 4), "length": LENGTHS},
        family="long context",
    ),
    TaskInfo(
        "kinship",
        "interp.tasks.kinship:Kinship",
        "a relative several links away, one sentence a link, with prose around them or without",
        "sentences and names written for this project; after NeedleBench (arXiv 2407.11963)",
        {
            "steps": 2,
            "families": 2,
            "ask": "eldest",
            "grandparents": False,
            "length": None,
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"steps": (1, 2, 3, 4), "families": (2, 3, 4)},
        family="long context",
    ),
    TaskInfo(
        "reading",
        "interp.tasks.reading:Reading",
        "questions about short passages, whose answers stand in them",
        "passages and questions written for this project; metric after SQuAD (arXiv 1606.05250)",
        {"shots": 2, "n": 64, "seed": 0},
        family="long context",
    ),
)

BIOGRAPHIES: tuple[TaskInfo, ...] = (
    TaskInfo(
        "biographies",
        "interp.tasks.biographies:Biographies",
        "short lives of several people, and a question for an attribute of one: literal to unsaid",
        "biographies written for this project; after LongBioBench (arXiv 2506.02921)",
        {
            "form": "standard",
            "people": 4,
            "attributes": 4,
            "density": 1.0,
            "shots": 0,
            "n": 64,
            "seed": 0,
        },
        ladder={
            "people": (2, 4, 6, 8),
            "form": ("standard", "paraphrase", "pronoun", "multihop", "unstated"),
            "attributes": (1, 2, 4, 6),
            "density": (0.0, 0.5, 1.0),
        },
        family="biographies",
    ),
)

ORDER: tuple[TaskInfo, ...] = (
    TaskInfo(
        "order",
        "interp.tasks.order:Order",
        "which of two sentences of a text, or of two things in a list, came first or last",
        "prose, lists and wordings written for this project; after SORT (arXiv 2410.08133)",
        {
            "form": "sentences",
            "answer": "label",
            "items": 8,
            "segment": 8,
            "haystack": "all",
            "shots": 0,
            "n": 64,
            "seed": 0,
        },
        ladder={"items": (4, 8, 16), "form": ("sentences", "words")},
        family="order",
    ),
    TaskInfo(
        "stories",
        "interp.tasks.stories:Stories",
        "people, places and things: where is what, who has what, and where it was before",
        "world and wordings written for this project; after bAbI (arXiv 1502.05698) and Dyna-bAbI (2112.00086)",
        {
            "facts": 1,
            "question": None,
            "sentences": 8,
            "people": 4,
            "places": 4,
            "things": 4,
            "style": (),
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
        ladder={"facts": (1, 2, 3), "sentences": (4, 8, 16)},
        family="order",
    ),
)

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

BUILT_IN = (
    *ASSOCIATIVE,
    *LONG_CONTEXT,
    *BIOGRAPHIES,
    *ORDER,
    *INTERFERENCE,
    *WORKING_MEMORY,
    *KNOWLEDGE,
    *LISTS_AND_NAMES,
    *OTHER,
)
"""All of them, in the order of the families."""
