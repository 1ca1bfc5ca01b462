"""Learning in sessions: what is the same as plain training, what is kept, and what a kill leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from neuralforge.cli.main import main
from neuralforge.continual import IncrementalLearner, ReplayBuffer
from neuralforge.continual.history import History, adapter_digest
from neuralforge.continual.keys import PASSPHRASE, KeyFile
from neuralforge.data.dataset import Dataset
from neuralforge.data.example import Example
from neuralforge.data.gather import gather
from neuralforge.data.jsonl import write_examples
from neuralforge.data.run_folder import continual_folder, replay_folder
from neuralforge.models.base import BaseModel
from neuralforge.training import LoRATrainer
from neuralforge_common.errors import AdapterError, CheckpointError, StorageError, VaultError
from neuralforge_common.folder import read_adapter_folder

Fresh = Callable[..., BaseModel]

OPTIONS: dict[str, Any] = {"rank": 2, "max_length": 48, "learning_rate": 3e-3, "batch_size": 4}
QUICK: dict[str, Any] = {"epochs": 1, "max_steps": 3}


@pytest.fixture(scope="module")
def weeks(team_code: Path) -> tuple[Dataset, Dataset]:
    """Two sessions' data, of unlike files."""
    files = sorted(team_code.iterdir())
    return (
        gather(sources=files[:4], max_samples=16, max_eval_samples=4, seed=0),
        gather(sources=files[4:], max_samples=16, max_eval_samples=4, seed=0),
    )


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "key")


def first(base: BaseModel, path: Path, data: Dataset, **options: Any) -> IncrementalLearner:
    """An adapter after one session that is remembered."""
    learner = IncrementalLearner(path, anew=True, trainer=LoRATrainer(base, **OPTIONS), **options)
    learner.learn_from_session(data, **QUICK)
    return learner


def again(base: BaseModel, path: Path, **options: Any) -> IncrementalLearner:
    """The same adapter, taken up in another process."""
    return IncrementalLearner(path, trainer=LoRATrainer(base, **OPTIONS), **options)


def test_without_ewc_and_replay_it_is_plain_training_to_the_last_bit(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    before = read_adapter_folder(path).state
    again(fresh_base(), path, replay_buffer_size=0, ewc_lambda=0).learn_from_session(weeks[1], **QUICK)

    plain = LoRATrainer(fresh_base(), **OPTIONS, state=before)
    plain.train(weeks[1].train, weeks[1].evaluation, **QUICK)
    assert read_adapter_folder(path).state == plain.state()
    assert plain.state() != before


def test_each_means_changes_what_is_learnt(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    first(fresh_base(), tmp_path / "team.lora", weeks[0], key=key, der_alpha=1.0)
    adapters = []
    changes: list[dict[str, Any]] = [
        {}, {"ewc_lambda": 50.0}, {"ewc_lambda": 0}, {"replay_ratio": 0.5}, {"replay_ratio": 0}, {"der_alpha": 1.0}
    ]  # fmt: skip
    for number, options in enumerate(changes):
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "team.lora", place / "team.lora")
        shutil.copytree(tmp_path / ".neuralforge", place / ".neuralforge")
        again(fresh_base(), place / "team.lora", key=key, **options).learn_from_session(weeks[1], **QUICK)
        adapters.append(read_adapter_folder(place / "team.lora").state)
    assert all(one != other for one, other in combinations(adapters, 2))


def test_the_report_has_a_line_for_each_session_and_the_last_one_stands_as_it_was(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    path = tmp_path / "team.lora"
    learner = first(fresh_base(), path, weeks[0], key=key)
    (only,) = learner.forget_report()
    assert only.now == only.then
    learner = again(fresh_base(), path, key=key)
    learnt = learner.learn_from_session(weeks[1], **QUICK)
    old, new = learner.forget_report()
    assert (old.session, new.session) == ("1", "2")
    assert old.then == only.then
    assert old.now.loss != old.then.loss
    assert new.now == new.then
    assert learnt.result.after is not None
    assert new.now.loss == pytest.approx(learnt.result.after.loss, rel=1e-6)
    opened = again(fresh_base(), path, key=key)
    assert [kept.now.loss for kept in opened.forget_report()] == pytest.approx([old.now.loss, new.now.loss], rel=1e-6)
    assert [session.examples for session in opened.sessions] == [16, 16]
    assert opened.sessions[1].replayed == 16
    assert opened.replay_buffer.sessions == {"1": 16, "2": 16}


def test_what_an_earlier_session_holds_out_is_never_learnt(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], key=key)
    mixed = [*weeks[1].train, *weeks[0].evaluation]
    learner = again(fresh_base(), path, key=key)
    learnt = learner.learn_from_session(
        Dataset(train=tuple(mixed), evaluation=weeks[1].evaluation, report=weeks[1].report), **QUICK
    )
    assert learnt.repeated == len(weeks[0].evaluation)
    kept = {item.example.id for item in learner.replay_buffer.items}
    assert not kept & {example.id for example in weeks[0].evaluation}
    assert kept >= {example.id for example in weeks[1].train}


def test_a_session_that_is_stopped_leaves_everything_as_it_was(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], key=key)
    before = files_of(tmp_path)
    learnt = again(fresh_base(), path, key=key).learn_from_session(weeks[1], stop=lambda: True, **QUICK)
    assert learnt.session is None
    assert files_of(tmp_path) == before


def test_an_adapter_without_a_history_gets_one(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    trainer = LoRATrainer(fresh_base(), **OPTIONS)
    trainer.train(weeks[0].train, **QUICK)
    path = trainer.save_adapter(tmp_path / "team.lora", author="Ada")
    learner = again(fresh_base(), path, key=key)
    assert learner.sessions == ()
    learner.learn_from_session(weeks[1], **QUICK)
    assert [session.name for session in again(fresh_base(), path, key=key).sessions] == ["1"]
    metadata = read_adapter_folder(path).metadata
    assert (metadata.author, metadata.training_samples) == ("Ada", 32)


def test_a_history_of_another_adapter_is_refused(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    trainer = LoRATrainer(fresh_base(), **OPTIONS)
    trainer.train(weeks[1].train, **QUICK)
    trainer.save_adapter(path)
    with pytest.raises(CheckpointError, match="are those of another adapter"):
        IncrementalLearner(path, replay_buffer_size=0)


def test_a_trainer_of_another_kind_is_refused_with_both_values(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    with pytest.raises(AdapterError, match="its rank is 2, the trainer's is 4"):
        IncrementalLearner(path, replay_buffer_size=0, trainer=LoRATrainer(fresh_base(), **OPTIONS | {"rank": 4}))


def test_without_a_key_nothing_is_begun(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    with pytest.raises(VaultError, match="no key for the replay buffer"):
        IncrementalLearner(path)
    monkeypatch.setenv(PASSPHRASE, "a horse")
    assert IncrementalLearner(path).sessions[0].held_out == 0


def test_two_sessions_at_once_are_refused(fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    path = tmp_path / "team.lora"
    learner = first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    with History(path).learning():
        with pytest.raises(StorageError, match=r"a session of team\.lora is being learnt just now"):
            learner.learn_from_session(weeks[1], **QUICK)
        with pytest.raises(StorageError, match="just now"):
            IncrementalLearner(path, replay_buffer_size=0)


def test_a_learner_that_was_overtaken_does_not_overwrite(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "team.lora"
    slow = first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    again(fresh_base(), path, replay_buffer_size=0).learn_from_session(weeks[1], **QUICK)
    with pytest.raises(AdapterError, match="was changed since it was opened"):
        slow.learn_from_session(weeks[1], **QUICK)


def test_the_buffer_is_purged_while_a_session_is_learnt_and_stays_so(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], key=key)
    learner = again(fresh_base(), path, key=key)

    def purge() -> bool:
        if replay_folder(path).exists():
            assert main(["replay", "purge", str(path), "--yes"]) == 0
        return False

    learner.learn_from_session(weeks[1], stop=purge, **QUICK)
    opened = again(fresh_base(), path, key=key)
    assert opened.replay_buffer.sessions == {"2": 16}
    assert [kept.session for kept in opened.forget_report()] == ["2"]


def test_no_planted_text_stands_in_the_clear_below_the_folder(fresh_base: Fresh, tmp_path: Path, key: KeyFile) -> None:
    path = tmp_path / "team.lora"
    planted = [
        Example(context=f"# zebra_crossing_{n}\n", completion=f"quagga_{n} = {n} * {n}\n", path=f"{n % 5}.py")
        for n in range(20)
    ]
    learner = IncrementalLearner(path, anew=True, trainer=LoRATrainer(fresh_base(), **OPTIONS), key=key)
    learner.learn_from_session(planted, **QUICK)
    held_out = len(learner.replay_buffer) + learner.sessions[0].held_out
    assert held_out > len(learner.replay_buffer) > 0
    assert b"quagga" in "".join(item.example.completion for item in learner.replay_buffer.items).encode()
    for file in (*path.rglob("*"), *(tmp_path / ".neuralforge").rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            assert b"zebra_crossing" not in data, file
            assert b"quagga" not in data, file
    assert continual_folder(path).stat().st_mode & 0o777 == 0o700


KILLED = """
import os, shutil, signal, sys
from pathlib import Path

folder, step, tests = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, tests)
import torch
torch.set_num_threads(1)
from test_incremental import OPTIONS, IncrementalLearner, KeyFile, LoRATrainer
from neuralforge.data.jsonl import read_examples
from neuralforge.models.load import load_base_model

trainer = LoRATrainer(load_base_model("nf-tiny", dtype="float32", device="cpu"), **OPTIONS)
examples = list(read_examples(folder / "model" / "new.jsonl"))

def learn(place, point):
    count = 0

    def watch(event, arguments):
        # All by which a file system changes names: the moments between which a crash can see a difference.
        nonlocal count
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    learner = IncrementalLearner(place / "team.lora", trainer=trainer, key=KeyFile(place / "key"))
    keep = learner._keep

    def trained(*arguments):
        sys.addaudithook(watch)
        return keep(*arguments)

    learner._keep = trained
    learner.learn_from_session(examples, epochs=1, max_steps=1)

point, ended = 1, False
while not ended:
    place = folder / f"killed-{point:03d}"
    shutil.copytree(folder / "model", place)
    child = os.fork()
    if child == 0:
        learn(place, point)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    ended = status == 0
    point += step
"""


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_adapter_and_history_are_of_one_session(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, step: int
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    trainer = first(fresh_base(), model / "team.lora", weeks[0], key=KeyFile(model / "key")).trainer
    write_examples(model / "new.jsonl", weeks[1].train)
    old = read_adapter_folder(model / "team.lora").state
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(step), str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    outcomes = []
    for place in sorted(tmp_path.glob("killed-*")):
        learner = IncrementalLearner(place / "team.lora", trainer=trainer, key=KeyFile(place / "key"))
        new = read_adapter_folder(place / "team.lora").state != old
        names = [session.name for session in learner.sessions]
        assert names == (["1", "2"] if new else ["1"]), place
        assert sorted(learner.replay_buffer.sessions) == names, place
        assert [kept.session for kept in learner.forget_report()] == names, place
        assert learner.ewc.state is not None
        assert learner.ewc.state.sessions == len(names), place
        assert learner.ewc.penalty(trainer) == 0, "the anchor is the adapter"
        assert not (continual_folder(place / "team.lora") / "next").exists(), place
        outcomes.append(new)
    assert outcomes == sorted(outcomes), "before one moment the old session, after it the new one"
    assert outcomes.count(False) > 2
    assert outcomes.count(True) > 2


def files_of(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_the_digest_tells_weights_and_scaling_apart(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], replay_buffer_size=0)
    found = read_adapter_folder(path)
    digest = adapter_digest(found.spec, found.state)
    assert adapter_digest(replace(found.spec, alpha=9.0), found.state) != digest
    assert adapter_digest(replace(found.spec, base_fingerprint="sha256:" + "0" * 64), found.state) != digest
    assert adapter_digest(found.spec, read_adapter_folder(path).state) == digest


def test_a_buffer_kept_with_another_balance_is_taken_up_as_it_is(
    fresh_base: Fresh, weeks: tuple[Dataset, Dataset], tmp_path: Path, key: KeyFile
) -> None:
    path = tmp_path / "team.lora"
    first(fresh_base(), path, weeks[0], key=key, replay_balance="session")
    assert again(fresh_base(), path, key=key).replay_buffer.balance == "session"
    with pytest.raises(VaultError, match="was made with balance 'session', asked for is 'language'"):
        again(fresh_base(), path, key=key, replay_balance="language")
    assert isinstance(ReplayBuffer.open(replay_folder(path), key, balance="session"), ReplayBuffer)
