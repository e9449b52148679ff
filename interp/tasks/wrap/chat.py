"""A task in the tokenizer's own chat template, as an instruct model was trained to be asked.

Context and question are the user's turn; the stem of the answer begins the assistant's, so that the answer has the
same tokens with the template and without it.
"""

from __future__ import annotations

from typing import Any

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Task
from interp.tasks.haystack import n_leading
from interp.tasks.wrap.base import Added, Kept, Made, Part, Wrapped, question, question_end, refuse

CONTINUE = "Please go on with this text."
"""What the user says where a prompt has neither question nor context: the assistant's turn begins with all of it."""

_MARK = "\ue000user\ue001"
_STEM = "Answer:"


class Chat(Wrapped):
    """A task in a chat template; what the template adds has role `template` (item 0 before, item 1 after the user).

    A special token that both the template and the tokenizer put in front of a text stands there once.

    Args:
        base: the task.
        system: the system's message; default what the template has by itself.
    """

    wrapper = "chat"

    def __init__(self, base: Task, system: str | None = None):
        if system is not None and not isinstance(system, str):
            raise UsageError(f"chat: system is {system!r}; take a text")
        self.system = system
        super().__init__(base, system=system)

    def plan(self, example: Example, rng: Any, tokens: Tokens) -> tuple[str, str]:
        if example.text is None:
            raise refuse(self.wrapper, example, "it has ids and no text")
        if example.spans_of("template"):
            raise refuse(self.wrapper, example, "it is a chat already")
        return template(tokens, self.system)

    def parts(self, example: Example, plan: tuple[str, str], tokens: Tokens) -> Made:
        text = example.text or ""
        before, after = Added(plan[0], role="template", item=0), Added(plan[1], role="template", item=1)
        end = question_end(example)
        end = question(example) if end is None else end
        if end is None:
            both = Added(plan[0] + CONTINUE + plan[1], role="template", item=0)
            return Made((both, Kept(0, len(text))))
        rest = len(text) - len(text[end:].lstrip())
        stem: Part = Kept(rest, len(text)) if rest < len(text) else Added(_STEM)
        return Made((before, Kept(0, end), after, stem))


def template(tokens: Tokens, system: str | None = None) -> tuple[str, str]:
    """What a tokenizer's chat template puts before the user's words, and between them and the assistant's.

    Raises:
        UsageError: it has none, takes no message of the system, or does more with the words than to put them in.
    """
    if not getattr(tokens.hf, "chat_template", None):
        raise UsageError("chat: this tokenizer has no chat template; take an instruct model")
    from jinja2.exceptions import TemplateError

    messages = [{"role": "user", "content": _MARK}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = str(tokens.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as why:
        raise UsageError(f"chat: this tokenizer's chat template refuses the messages: {why}") from None
    if text.count(_MARK) != 1:
        raise UsageError("chat: this tokenizer's chat template does not put in what the user says once")
    before, after = text.split(_MARK)
    plain = tokens.encode("a")
    for special in plain.ids[: n_leading(plain)]:
        before = before.removeprefix(tokens.decode([special]))
    return before, after


def chat(task: Task, system: str | None = None) -> Task:
    """A task in the tokenizer's own chat template; see `Chat`.

    Args:
        task: any task that has a text.
        system: the system's message.
    """
    return Chat(task, system)
