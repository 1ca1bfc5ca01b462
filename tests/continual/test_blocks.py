"""Sessions in blocks of their own: what is frozen, what is saved, and what later sessions find."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralforge.continual import IncrementalLearner, blocks, remembered
from neuralforge.continual.blocks import Blocks
from neuralforge.continual.gates import gated
from neuralforge.continual.incremental import Learnt
from neuralforge.continual.keys import KeyFile
from neuralforge.continual.progressive import merge
from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.data.run_folder import continual_folder, languages_folder
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge_common.adapter import AdapterState
from neuralforge_common.errors import CheckpointError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.layout import AdapterLayout

Fresh = Callable[..., BaseModel]
OPTIONS: dict[str, Any] = {"rank": 2, "max_length": 48, "learning_rate": 3e-3, "batch_size": 4}
QUICK: dict[str, Any] = {"epochs": 1, "max_steps": 3}


@pytest.fixture(scope="module")
def weeks(team_code: Path) -> list[Dataset]:
    """Three sessions' data, of unlike files."""
    files = sorted(team_code.iterdir())
    parts = (files[:3], files[3:5], files[5:])
    return [gather(sources=part, max_samples=12, max_eval_samples=3, seed=0) for part in parts]


@pytest.fixture(scope="module")
def team(weeks: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learnt]:
    """An adapter after a plain session and one in a block of its own, and what that came to. Copy it."""
    from neuralforge.models.load import load_base_model

    folder = tmp_path_factory.mktemp("team")
    key = KeyFile(folder / "key")
    trainer = LoRATrainer(load_base_model("nf-tiny", dtype="float32", device="cpu"), **OPTIONS)
    learner = IncrementalLearner(folder / "team.lora", anew=True, trainer=trainer, key=key, progressive=True)
    learner.learn_from_session(weeks[0], **QUICK)
    learnt = learner.learn_from_session(weeks[1], **QUICK)
    return folder, learnt


@pytest.fixture
def place(team: tuple[Path, Learnt], tmp_path: Path) -> Path:
    return Path(shutil.copytree(team[0], tmp_path / "work"))


def taken_up(place: Path, base: BaseModel, **options: Any) -> IncrementalLearner:
    """The adapter, taken up in another process."""
    trainer = LoRATrainer(base, **OPTIONS)
    return IncrementalLearner(place / "team.lora", trainer=trainer, key=KeyFile(place / "key"), **options)


def components(state: AdapterState, first: int, last: int) -> list[np.ndarray[Any, Any]]:
    """A and B of these components, of every module."""
    layout = AdapterLayout.of(state)
    return [part for _, a, b in layout.factors(layout.flatten(state)) for part in (a[first:last], b[:, first:last])]


def test_what_is_saved_is_one_adapter_of_the_same_rank_made_of_the_blocks(team: tuple[Path, Learnt]) -> None:
    folder, learnt = team
    merged, session = learnt.merged, learnt.session
    assert merged is not None
    assert session is not None
    assert merged.blocks.ranks == (2, 2)
    _, wanted, error = merge(merged.blocks.spec, merged.blocks.state, 2)
    saved = read_adapter_folder(folder / "team.lora")
    assert (saved.spec.rank, saved.spec.scaling) == (2, merged.blocks.spec.scaling)
    assert saved.state == wanted
    assert session.merged == merged.error == error > 0
    assert session.ewc_lambda == 0


def test_before_and_after_are_of_the_one_adapter(team: tuple[Path, Learnt], fresh_base: Fresh, place: Path) -> None:
    after = team[1].result.after
    assert after is not None
    report = taken_up(place, fresh_base()).forget_report()
    assert [kept.session for kept in report] == ["1", "2"]
    assert report[1].now.loss == pytest.approx(report[1].then.loss, rel=1e-6)
    assert report[1].now.loss == pytest.approx(after.loss, rel=1e-6)


def test_a_later_block_leaves_every_bit_of_the_earlier_ones(
    team: tuple[Path, Learnt], fresh_base: Fresh, place: Path, weeks: list[Dataset]
) -> None:
    learner = taken_up(place, fresh_base(), progressive=True)
    before = learner.remembered.blocks()
    assert before is not None
    assert team[1].merged is not None
    assert before.state == team[1].merged.blocks.state
    merged = learner.learn_from_session(weeks[2], **QUICK).merged
    assert merged is not None
    assert merged.blocks.ranks == (2, 2, 2)
    kept = components(merged.blocks.state, 0, 4)
    assert all(np.array_equal(one, other) for one, other in zip(kept, components(before.state, 0, 4), strict=True))
    assert all(part.any() for part in components(merged.blocks.state, 4, 6))


def test_right_angles_are_asked_for_where_somebody_does(fresh_base: Fresh, place: Path, weeks: list[Dataset]) -> None:
    learner = taken_up(place, fresh_base(), progressive=True, orthogonal_lambda=100.0)
    before = learner.remembered.blocks()
    assert before is not None
    begun = before.with_another(2, seed=2)
    merged = learner.learn_from_session(weeks[2], **QUICK).merged
    assert merged is not None
    assert overlap(merged.blocks.state) < 0.95 * overlap(begun.state)


def test_a_session_that_is_stopped_leaves_blocks_and_adapter_as_they_were(
    fresh_base: Fresh, place: Path, weeks: list[Dataset]
) -> None:
    before = files_of(place)
    learner = taken_up(place, fresh_base(), progressive=True)
    learnt = learner.learn_from_session(weeks[2], stop=lambda: True, **QUICK)
    assert learnt.session is None
    assert learnt.merged is None
    assert files_of(place) == before
    assert learner.trainer.state() == read_adapter_folder(place / "team.lora").state


def test_a_session_that_was_stopped_goes_on_to_the_same_bytes(
    fresh_base: Fresh, place: Path, weeks: list[Dataset], tmp_path: Path
) -> None:
    straight = Path(shutil.copytree(place, tmp_path / "straight"))
    taken_up(straight, fresh_base(), progressive=True).learn_from_session(weeks[2], **QUICK)
    asked = iter([False, True])
    saving = {**QUICK, "checkpoint_dir": tmp_path / "checkpoints", "resume": True}
    learner = taken_up(place, fresh_base(), progressive=True)
    stopped = learner.learn_from_session(weeks[2], stop=lambda: next(asked), **saving).result
    assert (stopped.completed, stopped.steps) == (False, 1)
    taken_up(place, fresh_base(), progressive=True).learn_from_session(weeks[2], **saving)
    for name in ("team.lora/adapter_model.safetensors", ".neuralforge/team/continual/blocks.safetensors"):
        assert (place / name).read_bytes() == (straight / name).read_bytes()


def test_after_a_plain_session_the_adapter_is_the_first_block_again(
    fresh_base: Fresh, place: Path, weeks: list[Dataset]
) -> None:
    learner = taken_up(place, fresh_base())
    learner.learn_from_session(weeks[2], **QUICK)
    assert not (continual_folder(place / "team.lora") / "blocks.safetensors").exists()
    found = learner.remembered.blocks()
    assert found is not None
    assert found.ranks == (2,)
    assert found.state == read_adapter_folder(place / "team.lora").state
    assert learner.ewc.state is not None
    assert learner.ewc.state.sessions == 3


def test_with_the_most_blocks_the_adapter_is_the_first_one_of_the_next(
    fresh_base: Fresh, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = taken_up(place, fresh_base(), progressive=True)
    monkeypatch.setattr(remembered, "MOST_BLOCKS", 2)
    found = learner.remembered.blocks()
    assert found is not None
    assert (found.ranks, found.state) == ((2,), read_adapter_folder(place / "team.lora").state)


def test_two_languages_get_an_adapter_each_of_the_same_blocks_and_a_path_is_no_language(
    fresh_base: Fresh, place: Path, weeks: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TOLD", 6)
    monkeypatch.setattr(blocks, "FEWEST", 6)
    new = weeks[2]
    named = [replace(e, language=("rust", "../../up")[number % 2]) for number, e in enumerate(new.train)]
    other = Dataset(train=tuple(named), evaluation=(), report=new.report)
    merged = taken_up(place, fresh_base(), progressive=True).learn_from_session(other, **QUICK).merged
    assert merged is not None
    assert set(merged.gates) == {"python", "rust"}
    folder = languages_folder(place / "team.lora")
    for language, gates in merged.gates.items():
        assert gates.after < gates.before
        saved = read_adapter_folder(folder / f"{language}.lora")
        assert saved.spec.rank == 6
        assert saved.state == gated(merged.blocks.state, (2, 2, 2), gates.weights)
    assert merged.gates["python"].weights != merged.gates["rust"].weights
    taken_up(place, fresh_base()).learn_from_session(weeks[2], **QUICK)
    assert not folder.exists()


def test_a_flipped_byte_in_the_blocks_names_the_file_and_the_adapter_goes_on(
    fresh_base: Fresh, place: Path, weeks: list[Dataset]
) -> None:
    path = continual_folder(place / "team.lora") / "blocks.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blocks\.safetensors is damaged"):
        taken_up(place, fresh_base(), progressive=True).learn_from_session(weeks[2], **QUICK)
    taken_up(place, fresh_base()).learn_from_session(weeks[2], **QUICK)


def test_blocks_come_back_as_they_were_put_down(team: tuple[Path, Learnt], tmp_path: Path) -> None:
    merged = team[1].merged
    assert merged is not None
    merged.blocks.save(tmp_path / "b.safetensors")
    spec = read_adapter_folder(team[0] / "team.lora").spec
    digest = merged.blocks.state.digest()
    found = Blocks.load(tmp_path / "b.safetensors", of=spec, ranks=(2, 2), digest=digest)
    assert (found.spec, found.state) == (merged.blocks.spec, merged.blocks.state)


def overlap(state: AdapterState) -> float:
    """‖ A_old · A_newᵀ ‖² over all modules, the last two components being the new ones."""
    layout = AdapterLayout.of(state)
    return sum(float(np.sum((a[:-2] @ a[-2:].T) ** 2)) for _, a, _ in layout.factors(layout.flatten(state)))


def files_of(place: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
