"""A private federation as people run it: what each side is told of what it costs, and what the adapter then says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from federation_rig import Team

from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.folder import read_adapter_folder

pytestmark = pytest.mark.slow

PRIVACY = "privacy: {enabled: true, sample_rate: 0.2, noise_multiplier: 2.0, spare_rounds: 0}\n"


def test_both_sides_say_what_a_private_federation_has_cost(tmp_path: Path) -> None:
    with Team(tmp_path / "team", rounds=2, steps=3, evaluate_every=1, more=PRIVACY) as team:
        (team.place / "policy.yaml").write_text("require: {max_epsilon: 8, unit: sample}\n")
        config = team.place / "bob.yaml"
        config.write_text(config.read_text() + "federation: {policy: policy.yaml}\n")
        server = team.start_server()
        team.wait_for_server(server)
        team.join_all()
        clients = [team.start_client(name) for name in team.members]
        assert server.ends(150) == 0, server.said
        assert [client.ends(60) for client in clients] == [0, 0], clients[0].said

        after = [epsilon([Steps(sample_rate=0.2, noise_multiplier=2.0, count=steps)], 1e-5) for steps in (3, 6)]
        for client in clients:
            assert "private rounds: in each step a sample is drawn with probability 0.2" in client.said
            told = re.findall(
                r"privacy spent: ε = ([\d.]+) of 8 at δ = 1e-05, example-level, in (\d) steps", client.said
            )
            assert told == [(f"{after[0]:.3g}", "3"), (f"{after[1]:.3g}", "6")]
            assert "held out" in client.said, "its owner sees how good it is"
        assert re.findall(r"privacy spent so far: ε = ([\d.]+)", server.said) == [f"{spent:.3g}" for spent in after]

        (status,) = team.status()["privacy"]  # type: ignore[misc]
        assert status["epsilon"] == pytest.approx(after[1])
        assert (status["target_epsilon"], status["level"]) == (8.0, "example-level")
        shown = team.run("nf-server", "status").stdout
        assert f"privacy: ε = {after[1]:.3g} of 8 spent at δ = 1e-05, example-level (by noise on each client)" in shown

        for path in (team.server / "adapter.lora", team.place / "ann-together.lora"):
            metadata = read_adapter_folder(path).metadata
            assert metadata.privacy is not None
            assert (metadata.privacy.epsilon, metadata.privacy.unit) == (8.0, "sample")
            assert (metadata.accuracy, metadata.evaluation) == (None, None)
        figures = [record for record in team.records if record["kind"] == "Accepted"]
        assert {json.dumps({k: r["report"][k] for k in ("examples", "tokens", "loss")}) for r in figures} == {
            json.dumps({"examples": 1, "tokens": 0, "loss": None})
        }
        assert not [record for record in team.records if record["kind"] == "Scored"]
