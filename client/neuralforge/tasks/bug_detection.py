"""The task of finding a bug: from a function with a fault to the line as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from neuralforge.data.example import Example
from neuralforge.tasks.function import functions_in
from neuralforge.tasks.mutation import mutants
from neuralforge.tasks.task import COMMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class BugDetection:
    """Faults by mutation, see `mutation`; at most `per_function` of a function, one of each kind first.

    The context is the function with its fault, under a comment that says what is wanted; the completion is the faulty
    line as a person wrote it, so that finding the place is a part of the task.
    """

    per_function: int = 2
    seed: int = 0

    name = "bug_detection"

    def examples(self, example: Example) -> Iterator[Example]:
        """One for each fault put into a function that is whole in the example."""
        for function in functions_in(example):
            mark = COMMENT.get(function.language, "//")
            for mutant in mutants(function, self.per_function, seed=self.seed):
                asked = f"{mark} Task: one line of this function is wrong.\n"
                yield replace(
                    example,
                    context=f"{asked}{mutant.text}{mark} That line, fixed:\n",
                    completion=mutant.fixed,
                    suffix="",
                    language=function.language,
                    kind=self.name,
                )
