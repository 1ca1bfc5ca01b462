"""What a focus draws: its share, and the same batches whenever a step is asked for, as a resumed run does."""

from neuralforge.data.detectors import find_detectors
from neuralforge.data.example import Example
from neuralforge.data.focus import FOCUSED, focus_on
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.shares import Shares, SharesSource

EXAMPLES = [Example(context="", completion="@A int x;" if i % 5 == 0 else "int x;", language="java") for i in range(40)]
TOKENIZED = [TokenizedExample(index=i, tokens=(1, 2 + i % 7, 3), start=1) for i in range(40)]


def _source(weight: float) -> SharesSource:
    focus = focus_on(EXAMPLES, find_detectors(["annotations"]), weight=weight)
    maker = Shares(groups=focus.groups, shares=focus.shares)
    return maker(TOKENIZED, batch_size=4, accumulation=1, seed=7)


def _visits(source: SharesSource, steps: int) -> list[int]:
    drawn = [e.index for step in range(steps) for batch in source.batches(step) for e in batch.examples]
    return [drawn.count(i) for i in range(40)]


def test_focused_examples_are_visited_weight_times_as_often() -> None:
    for weight in (1, 3, 0.5):
        visits = _visits(_source(weight), steps=400)
        focused = sum(visits[i] for i in range(0, 40, 5)) / 8
        other = sum(visits[i] for i in range(40) if i % 5) / 32
        assert abs(focused / other - weight) < 0.02 * weight
        assert min(visits) > 0


def test_a_step_draws_the_same_whatever_was_asked_before() -> None:
    forward = [_source(3).batches(step) for step in range(1)] + [_source(3).batches(step) for step in (5, 30)]
    source = _source(3)
    assert [source.batches(step) for step in (30, 5, 0)] == forward[::-1]
    assert source.digest() == _source(3).digest() != _source(4).digest()
    assert FOCUSED in source.drawn(1)
