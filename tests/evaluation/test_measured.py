"""What is measured of an open adapter: times, memory, two adapters on one base."""

import math
from pathlib import Path

import numpy as np
import pytest

from neuralforge.data.jsonl import read_examples
from neuralforge.evaluation import evaluate_adapter
from neuralforge.evaluation.benchmark import writer_of
from neuralforge.evaluation.generation import Generation
from neuralforge.evaluation.latency import measure, quantiles
from neuralforge.evaluation.memory import PeakMemory
from neuralforge.evaluation.one_base import read_pair
from neuralforge.evaluation.pair import Pair, open_pair
from neuralforge_common.adapter import AdapterState
from neuralforge_common.folder import AdapterMetadata, read_adapter_folder, write_adapter_folder


@pytest.fixture(scope="module")
def pair(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The trained adapter as A and one that changes nothing as B."""
    folder = read_adapter_folder(adapter)
    nothing = {name: np.zeros_like(matrix) if ".lora_B." in name else matrix for name, matrix in folder.state.items()}
    path = tmp_path_factory.mktemp("nothing") / "nothing.lora"
    write_adapter_folder(path, spec=folder.spec, state=AdapterState(nothing), metadata=AdapterMetadata(name="nothing"))
    return open_pair(read_pair(adapter, path), device="cpu", max_length=96)


@pytest.fixture(scope="module")
def samples(adapter: Path) -> Path:
    return adapter.parent / ".neuralforge" / "team" / "held-out.jsonl"


def test_two_adapters_share_the_weights_of_their_base_and_nothing_else(pair: Pair, samples: Path) -> None:
    def weights(of: object) -> dict[str, int]:
        return {n: p.data_ptr() for n, p in of.named_parameters() if ".lora_" not in n}  # type: ignore[attr-defined]

    assert weights(pair.a.peft) == weights(pair.b.peft)
    examples = tuple(read_examples(samples))[:4]
    before = pair.a.score(examples, adapter=True)
    assert pair.b.score(examples, adapter=True) == pair.b.score(examples, adapter=False)
    assert pair.a.score(examples, adapter=True) == before != pair.a.score(examples, adapter=False)
    assert pair.same_shapes
    assert not pair.same_weights


def test_every_token_has_its_time(pair: Pair) -> None:
    made = pair.a.complete("def area(r):\n", adapter=True, max_new_tokens=12, to_the_end=True)
    assert made.tokens == 12
    assert list(made.times) == sorted(made.times)
    assert 0 < made.times[0] < made.seconds == made.times[-1]
    assert made.cut


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_writer_that_is_stopped_has_written_the_beginning_of_what_it_would_have(
    pair: Pair, temperature: float
) -> None:
    options = {"adapter": True, "max_new_tokens": 24, "temperature": temperature, "seed": 3}
    whole = pair.a.complete("def area(r):\n", **options)
    asked: list[str] = []

    def enough(text: str) -> bool:
        asked.append(text)
        return len(text) >= 8

    stopped = pair.a.complete("def area(r):\n", **options, ended=enough)
    assert whole.text.startswith(stopped.text)
    assert stopped.tokens < whole.tokens
    assert stopped.text == asked[-1]
    assert all(len(text) < 8 for text in asked[:-1])


def test_writers_take_turns_and_every_one_is_warmed_up(samples: Path) -> None:
    examples = tuple(read_examples(samples))[:3]
    calls: list[str] = []

    def writer(name: str, seconds: float) -> object:
        def write(example: object, count: int) -> Generation:
            calls.append(name)
            late = seconds + calls.count(name) / 1000
            return Generation(text="", times=tuple(late * (i + 1) for i in range(count)), cut=True)

        return write

    one, two = writer("a", 1.0), writer("b", 2.0)
    a, b = measure([one, two], examples, max_new_tokens=4, rounds=2)  # type: ignore[list-item]
    assert "".join(calls) == "ab" + "abba" + "baab" + "abba"
    # The fastest of both rounds: this writer's every call is slower than the one before.
    assert a.completions == pytest.approx([4 * 1002, 4 * 1004, 4 * 1006])
    assert a.first == pytest.approx([1002, 1004, 1006])
    assert [len(gaps) for gaps in b.gaps] == [3, 3, 3]
    assert a.token == pytest.approx([1002, 1004, 1006])
    found = quantiles(a, seed=0)
    assert found["completion"]["p50"][0] == pytest.approx(4 * 1004)
    assert found["completion"]["p99"][1].high == math.inf


def test_the_suffix_is_left_out_for_a_base_without_marks_for_it(pair: Pair) -> None:
    plain = pair.a.complete("def area(r):\n", adapter=True, max_new_tokens=8)
    assert pair.a.complete("def area(r):\n", suffix="\nprint(1)", adapter=True, max_new_tokens=8).text == plain.text


def test_as_much_of_a_text_as_a_writer_could_write_is_wanted(pair: Pair) -> None:
    text = "    return x + 1\n" * 20
    cut = pair.a.first_tokens(text, 10)
    assert text.startswith(cut)
    assert 0 < len(cut) < len(text)
    assert pair.a.first_tokens("x", 10) == "x"


def test_the_peak_of_memory_is_seen_though_it_is_gone_at_the_end() -> None:
    with PeakMemory() as nothing:
        pass
    with PeakMemory() as watched:
        block = bytearray(200_000_000)
        block[::4096] = b"x" * len(block[::4096])
        watched._done.wait(0.05)
        del block
    assert watched.bytes - nothing.bytes > 150_000_000


def test_the_guides_function_gives_its_four_figures(pair: Pair, samples: Path) -> None:
    examples = tuple(read_examples(samples))[:3]
    figures = evaluate_adapter(pair.a, examples)
    assert list(figures) == ["accuracy", "perplexity", "latency", "memory"]
    assert 0 < figures["accuracy"] < 1 < figures["perplexity"]
    assert figures["latency"] > 0
    assert figures["memory"] > 1
    assert writer_of(pair.a)(examples[0], 3).tokens == 3
