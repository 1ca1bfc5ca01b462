"""A client that keeps what it knows over rounds and restarts, and still sends the same bytes for the same round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from developers import developer, nf_tiny, plan_for, state_for

from neuralforge.continual.keys import PASSPHRASE
from neuralforge.data.dataset import Dataset
from neuralforge.data.gather import gather
from neuralforge.federation.participant import Participant
from neuralforge.federation.prepare import remembering
from neuralforge.federation.remembering import Remembering
from neuralforge.federation.resident import ResidentModel
from neuralforge_common.adapter import FloatArray
from neuralforge_common.config.load import resolve_train_config
from neuralforge_common.errors import VaultError


@pytest.fixture(scope="module")
def resident() -> ResidentModel:
    return nf_tiny()


@pytest.fixture(scope="module")
def weeks(team_code: Path) -> tuple[Dataset, Dataset]:
    files = sorted(team_code.iterdir())
    return (
        gather(sources=files[:4], max_samples=12, max_eval_samples=4, seed=0),
        gather(sources=files[4:], max_samples=12, max_eval_samples=4, seed=0),
    )


def rounds(who: Participant, count: int, **changes: Any) -> list[FloatArray]:
    """The deltas of the first rounds, each from the same state of the coordinator."""
    plan = plan_for(who, **changes)
    _, state = state_for(who, plan)
    return [who.train(replace(plan, round=number), state)[1] for number in range(1, count + 1)]


def test_a_first_round_is_a_plain_one_and_a_strong_pull_holds_the_second(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    plain = rounds(developer(resident, weeks[0], tmp_path / "plain"), 2)
    for anchor in ("own", "global"):
        held = Remembering(ewc_lambda=1e6, anchor=anchor)  # type: ignore[arg-type]
        one, two = rounds(developer(resident, weeks[0], tmp_path / anchor, remembering=held), 2)
        assert one.tobytes() == plain[0].tobytes(), "there is nothing yet to be held"
        if anchor == "global":
            assert np.linalg.norm(two) < 0.3 * np.linalg.norm(plain[1]), "it stays at the federation's adapter"
        else:
            assert np.linalg.norm(two - one) < 0.3 * np.linalg.norm(one), "it goes back to where it was"


def test_without_a_weight_it_is_plain_to_the_last_bit(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    plain = rounds(developer(resident, weeks[0], tmp_path / "plain"), 2)
    none = rounds(developer(resident, weeks[0], tmp_path / "none", remembering=Remembering(anchor="global")), 2)
    assert [delta.tobytes() for delta in plain] == [delta.tobytes() for delta in none]
    assert not (tmp_path / "none" / "memory").exists()


@pytest.mark.parametrize("changes", [{}, {"rank": 4, "wire": "int8"}, {"part": "A", "personal": "B"}], ids=str)
def test_a_round_that_is_repeated_after_a_restart_gives_the_same_bytes(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path, changes: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"remembering": Remembering(ewc_lambda=5.0), "max_rank": 3}
    who = developer(resident, weeks[0], tmp_path, **options)
    sent = rounds(who, 3, **changes)
    plain = rounds(developer(resident, weeks[0], tmp_path / "plain", max_rank=3), 3, **changes)
    assert sent[1].tobytes() != plain[1].tobytes()
    again = developer(resident, weeks[0], tmp_path, **options)
    plan = plan_for(again, **changes)
    _, state = state_for(again, plan)
    # In turn, as a coordinator does: the rounds after a repeated one are done again as well.
    for number in (2, 3):
        assert again.train(replace(plan, round=number), state)[1].tobytes() == sent[number - 1].tobytes()


def test_another_federation_knows_nothing_of_it(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    options = {"remembering": Remembering(ewc_lambda=1e6)}
    who = developer(resident, weeks[0], tmp_path, **options)
    plan = plan_for(who)
    _, state = state_for(who, plan)
    who.train(plan, state)
    elsewhere = replace(plan, federation="others", round=2)
    fresh = developer(resident, weeks[0], tmp_path / "fresh").train(elsewhere, state)[1]
    assert who.train(elsewhere, state)[1].tobytes() == fresh.tobytes()


def test_frozen_components_leave_ewc_out(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    options = {"remembering": Remembering(ewc_lambda=1e6)}
    held = rounds(developer(resident, weeks[0], tmp_path / "held", **options), 2, rank=3, frozen_rank=2)
    plain = rounds(developer(resident, weeks[0], tmp_path / "plain"), 2, rank=3, frozen_rank=2)
    assert held[1].tobytes() == plain[1].tobytes()


def test_a_buffer_brings_back_what_an_earlier_start_has_learnt_and_a_restart_replays_the_same(
    resident: ResidentModel, weeks: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "a horse")
    resolved = resolve_train_config(None, {"optimization.replay_buffer_size": 16}, {})
    first = remembering(resolved, weeks[0], tmp_path / "replay")
    assert (len(first.items), first.ewc_lambda) == (12, 0.0)
    plain = rounds(developer(resident, weeks[0], tmp_path / "a"), 1)
    one = rounds(developer(resident, weeks[0], tmp_path / "b", remembering=first), 1)
    assert one[0].tobytes() == plain[0].tobytes(), "what is learnt anyway is not replayed beside it"

    starts = [remembering(resolved, weeks[1], tmp_path / "replay") for _ in range(2)]
    assert starts[0] == starts[1]
    assert {item.session for item in starts[0].items} == {data.digest[:16] for data in weeks}
    sent = [rounds(developer(resident, weeks[1], tmp_path / f"c{n}", remembering=s), 1) for n, s in enumerate(starts)]
    assert sent[0][0].tobytes() == sent[1][0].tobytes()
    assert sent[0][0].tobytes() != rounds(developer(resident, weeks[1], tmp_path / "d"), 1)[0].tobytes()


def test_only_what_somebody_has_asked_for_is_remembered(
    weeks: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    assert remembering(resolve_train_config(None, {}, {}), weeks[0], tmp_path / "replay") == Remembering()
    assert not (tmp_path / "replay").exists()
    asked = resolve_train_config(None, {"optimization.ewc_lambda": 2, "optimization.anchor": "global"}, {})
    assert remembering(asked, weeks[0], tmp_path / "replay") == Remembering(ewc_lambda=2.0, anchor="global")
    with pytest.raises(VaultError, match="no key for the replay buffer"):
        remembering(
            resolve_train_config(None, {"optimization.replay_buffer_size": 9}, {}), weeks[0], tmp_path / "replay"
        )
