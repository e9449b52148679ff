"""What a model is asked: tasks by name, the Example contract, and how to bring your own."""

from interp.tasks.registry import NAMES, TaskInfo, register, task

__all__ = ["NAMES", "TaskInfo", "register", "task"]
