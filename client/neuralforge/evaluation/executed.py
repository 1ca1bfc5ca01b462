"""Code that a base and its adapter write for a suite, run in the sandbox: who passes how much."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from neuralforge.evaluation.humaneval import CodeTask, pass_at
from neuralforge.evaluation.intervals import Interval, clusters_of, share_interval
from neuralforge.evaluation.opened import OpenedAdapter
from neuralforge.evaluation.sandbox import Limits, run_confined

TEMPERATURE = 0.8
"""Of samples that are more than one (Chen et al. 2021 found it best for pass@100)."""

LINE_TOKENS, BODY_TOKENS = 64, 384


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCode:
    """One answer to a task, by the base ("base") or with the adapter ("adapter")."""

    task: str
    who: str
    sample: int
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """The share of tasks that one of k samples solves, with Wilson's interval at 95 % over problems."""

    k: int
    value: float
    interval: Interval


def write_code(
    opened: OpenedAdapter,
    tasks: Sequence[CodeTask],
    *,
    samples: int = 1,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    after: Callable[[], object] = lambda: None,
) -> Iterator[WrittenCode]:
    """Answers of both to each task: one sample is greedy, several are drawn at `temperature`."""
    for number, task in enumerate(tasks):
        for who in ("base", "adapter"):
            for sample in range(samples):
                made = opened.complete(
                    task.prefix,
                    suffix=task.suffix,
                    adapter=who == "adapter",
                    max_new_tokens=LINE_TOKENS if task.one_line else BODY_TOKENS,
                    temperature=0.0 if samples == 1 else temperature,
                    # Both draw from the same numbers, and no two samples do.
                    seed=(seed * len(tasks) + number) * samples + sample,
                    ended=task.ended,
                )
                yield WrittenCode(task=task.name, who=who, sample=sample, answer=task.answer(made.text))
        after()


def run_code(
    tasks: Sequence[CodeTask],
    written: Sequence[WrittenCode],
    *,
    limits: Limits,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[list[bool]]]:
    """By who wrote it and by task, which samples pass; answers that are alike are run once. Raises SandboxError."""
    by_name = {task.name: task for task in tasks}
    distinct = sorted({(code.task, code.answer) for code in written})

    def passes(name: str, answer: str) -> bool:
        # Fresh for each run, so that no program can have learnt it.
        proof = secrets.token_hex(16)
        outcome = run_confined(by_name[name].program(answer, proof=proof), limits=limits)
        after()
        return outcome.ended == "exit" and outcome.code == 0 and proof in outcome.stdout

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        try:
            passed = dict(zip(distinct, pool.map(lambda pair: passes(*pair), distinct), strict=True))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    found: dict[str, dict[str, list[bool]]] = {who: {task.name: [] for task in tasks} for who in ("base", "adapter")}
    for code in written:
        found[code.who][code.task].append(passed[code.task, code.answer])
    return {who: list(by_task.values()) for who, by_task in found.items()}


def pass_rates(tasks: Sequence[CodeTask], passed: Sequence[Sequence[bool]]) -> list[PassRate]:
    """pass@1 and, of K samples, pass@K; lines of one problem count for as much as they differ."""
    clusters, _ = clusters_of([task.problem for task in tasks])
    found = []
    for k in sorted({1, len(passed[0])}):
        each = pass_at(k, passed)
        value = sum(each) / len(each)
        found.append(PassRate(k=k, value=value, interval=share_interval(each, clusters)))
    return found
