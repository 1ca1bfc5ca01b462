"""Tasks: other things to learn from the same code, one file each; `MultiTaskTrainer` learns several by shares.

A task of one's own is any object with a `name` and `examples(example)`, see `neuralforge.tasks.task`.
"""

from neuralforge.tasks.bug_detection import BugDetection
from neuralforge.tasks.completion import Completion
from neuralforge.tasks.documentation import Documentation
from neuralforge.tasks.task import Task

__all__ = ["BugDetection", "Completion", "Documentation", "Task"]
