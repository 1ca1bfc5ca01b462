"""From what joining has left on this machine to a session: found, asked for, alone; and rounds from Python."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from developers import developer, nf_tiny, plan_for, state_for
from enrolment_rig import Rig, rig
from federation_rig import Team, wait_until

import neuralforge.federation
from neuralforge.data.gather import gather
from neuralforge.federation.client import FederatedClient
from neuralforge.federation.home import JoinedFederation
from neuralforge.federation.join import join
from neuralforge.federation.participant import Participant
from neuralforge.federation.secagg.member import SecureMember
from neuralforge.federation.secagg.pins import Pins
from neuralforge.federation.session import find_federation, open_session
from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.errors import FederationError, UsageError
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.plan import TrainReport
from neuralforge_common.privacy import PrivacyTerms
from neuralforge_common.records import answer_text, masks_to_records, plan_to_records, raw_reply, state_record
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK, Survivors, adverts_to_json
from neuralforge_common.secagg.terms import MaskingTerms, state_digest
from neuralforge_common.wire import decode
from neuralforge_server.enrolment import serve_enrolment
from neuralforge_server.identity import Identities
from neuralforge_server.secagg.tally import Tally

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("server")) as rigged:
        yield rigged


def test_a_federation_is_found_by_its_address_and_by_its_name(server: Rig, tmp_path: Path) -> None:
    joined = server.joined("found", tmp_path)
    for name in (f"nf://{server.address.endpoint}", str(server.address), "team", None):
        assert find_federation(name, home=tmp_path).record == joined.record


def test_what_was_not_joined_is_not_found_and_the_way_to_join_is_told(server: Rig, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="has joined no federation called 'team'") as refused:
        find_federation("team", home=tmp_path)
    assert "nf-client join" in refused.value.hint
    server.joined("lost", tmp_path)
    with pytest.raises(FederationError, match="called 'taem', only team"):
        find_federation("taem", home=tmp_path)
    with pytest.raises(FederationError, match="has not joined nf://elsewhere:1") as refused:
        find_federation("nf://elsewhere:1", home=tmp_path)
    assert "nf-client join" in refused.value.hint
    with pytest.raises(UsageError, match="port"):
        find_federation("nf://elsewhere:many", home=tmp_path)


def test_of_two_federations_of_one_name_the_address_decides(server: Rig, tmp_path: Path) -> None:
    server.joined("first", tmp_path / "home")
    with rig(tmp_path / "other") as other:
        joined = other.joined("second", tmp_path / "home")
        with pytest.raises(FederationError, match="2 federations called 'team'") as refused:
            find_federation("team", home=tmp_path / "home")
        assert f"nf://{server.address.endpoint}" in refused.value.hint
        assert find_federation(f"nf://{other.address.endpoint}", home=tmp_path / "home").record == joined.record


def test_a_revoked_machine_is_told_so_before_anything_else(server: Rig, tmp_path: Path) -> None:
    joined = server.joined("gone", tmp_path)
    server.identities.revoke("gone")
    with pytest.raises(FederationError, match="revoked"), open_session(joined):
        pass


@pytest.fixture(scope="module")
def whole(link: Any) -> Iterator[Callable[[str, Path], tuple[JoinedFederation, int]]]:
    """Join the federation whose SuperLink is `link`, and be registered there; gives the node's number as well."""
    identities = Identities(link.state.identities_path)
    ports = {"host": "127.0.0.1", "port": 0, "member_port": 0, "fleet_port": link.fleet_port}
    running = serve_enrolment(link.state, identities, federation="team", **ports)

    def member(name: str, home: Path) -> tuple[JoinedFederation, int]:
        joined = join(link.state.address(running.port), identities.invite(name), home=home)
        return joined, link.register(joined.key, name)

    yield member
    running.stop(0)
    identities.close()


@pytest.fixture(scope="module")
def teacher(team_code: Path, tmp_path_factory: pytest.TempPathFactory) -> Participant:
    """Whoever writes plans for the base of all."""
    data = gather(sources=[team_code], max_samples=4, max_eval_samples=2)
    return developer(nf_tiny(), data, tmp_path_factory.mktemp("teacher"))


def test_two_processes_do_not_take_part_for_one_machine(whole: Any, tmp_path: Path) -> None:
    joined, node = whole("alone", tmp_path)
    with open_session(joined) as fleet:
        assert fleet.node_id == node
        second = open_session(joined)
        with pytest.raises(FederationError, match="another process on this machine takes part in team already"), second:
            pass
    with open_session(joined):  # and the end of the first lets it in
        pass


def test_a_round_from_python_leaves_the_machine_when_it_is_shared(
    whole: Any, run: Any, teacher: Participant, team_code: Path, tmp_path: Path
) -> None:
    _, node = whole("python", tmp_path / "home")
    plan = plan_for(teacher)
    layout, state = state_for(teacher, plan)
    adapter = tmp_path / "mine.lora"
    with FederatedClient("team", home=tmp_path / "home", base="nf-tiny", adapter=adapter) as client:
        asked = run.ask(node, plan_to_records(plan, state))
        report = client.train_local(team_code)
        assert (report.round, report.nonce, report.steps) == (plan.round, plan.nonce, plan.steps)
        assert list(run.grid.pull_messages([asked])) == []
        assert client.share_gradients() > 4 * layout.size
        reply = raw_reply(run.reply(asked).content)
        assert TrainReport.from_json(reply.report) == report
        delta = decode(reply.delta, count=layout.size, wire="fp32")
        assert np.linalg.norm(delta) == pytest.approx(report.norm)
        with pytest.raises(FederationError, match="nothing to share"):
            client.share_gradients()

        # A round that is trained and not shared is given up when the next one is asked for.
        kept = run.ask(node, plan_to_records(replace(plan, nonce="n-2"), state))
        client.train_local(team_code)
        asked = run.ask(node, plan_to_records(replace(plan, round=2, nonce="n-3"), state))
        assert client.train_local(team_code).round == 2
        assert run.reply(kept).error.reason == "the developer has not shared this round"
        client.share_gradients()
        assert run.reply(asked).has_content()

        run.ask(node, plan_to_records(replace(plan, nonce="finish"), state), kind="query.finish")
        assert client.take_part(team_code) == adapter
    assert read_adapter_folder(adapter).spec.rank == plan.spec.rank


def test_a_round_under_masks_from_python_is_shared_when_its_sum_is_unmasked(
    whole: Any, run: Any, teacher: Participant, team_code: Path, tmp_path: Path
) -> None:
    _, node = whole("masked", tmp_path / "home")
    others = [
        SecureMember(name, Ed25519PrivateKey.generate(), Pins(tmp_path / f"{name}.json")) for name in ("ann", "bob")
    ]
    terms = MaskingTerms(clients=3, limit=0.5, max_norm=100.0)
    plan = replace(plan_for(teacher), weighting="uniform", trust="peers", masking=terms)
    layout, state = state_for(teacher, plan)
    plan = replace(plan, masking=replace(terms, state=state_digest(state)))
    tally = Tally(plan, size=layout.size, needed=3, registered=None)
    record = state_record(state)

    def ask(question: str, texts: Callable[[str], str], add: Callable[[str, str], None]) -> None:
        asked = run.ask(node, masks_to_records(plan, texts("masked")), kind=f"query.{question}")
        for member in others:
            add(member.name, member.answer(question, plan, texts(member.name)))
        add("masked", answer_text(run.reply(asked).content))

    def coordinate() -> None:
        ask(KEYS, lambda name: "{}", tally.add_keys)
        everybody = adverts_to_json(tally.roster().adverts)
        ask(SHARES, lambda name: everybody, tally.add_shares)
        asked = run.ask(node, masks_to_records(plan, tally.delivery("masked").to_json(), record))
        for member in others:
            member.collect(plan, tally.delivery(member.name).to_json())
            tally.add_masked(member.name, member.mask(plan, np.zeros(layout.size, np.float32)))
        reply = raw_reply(run.reply(asked, within=60).content)
        told = TrainReport.from_json(reply.report)
        assert (told.examples, told.tokens, told.loss, told.norm, told.seconds) == (1, 0, None, 0.0, 0.0)
        tally.add_masked("masked", reply.delta)
        survivors = Survivors(names=tally.survivors).to_json()
        ask(SURVIVORS, lambda name: survivors, tally.add_confirmation)
        request = tally.request().to_json()
        ask(UNMASK, lambda name: request, tally.add_unmasking)

    with FederatedClient("team", home=tmp_path / "home", base="nf-tiny") as client, ThreadPoolExecutor(1) as pool:
        coordinator = pool.submit(coordinate)
        client.train_local(team_code)
        assert not coordinator.done()
        client.share_gradients()
        coordinator.result(30)
    trained, _ = teacher.train(plan, state)
    assert np.linalg.norm(3 * tally.mean()) == pytest.approx(trained.norm, rel=0.2)


def test_what_a_private_round_from_python_has_cost_is_told(
    whole: Any, run: Any, teacher: Participant, team_code: Path, tmp_path: Path
) -> None:
    _, node = whole("private", tmp_path / "home")
    terms = PrivacyTerms(noise_multiplier=1.0, sample_rate=0.05)
    plan = replace(plan_for(teacher), weighting="uniform", privacy=terms)
    _, state = state_for(teacher, plan)
    with FederatedClient("team", home=tmp_path / "home", base="nf-tiny") as client:
        assert client.spent is None
        asked = run.ask(node, plan_to_records(plan, state))
        report = client.train_local(team_code)
        spent = epsilon([Steps(sample_rate=0.05, noise_multiplier=1.0, count=3)], terms.delta)
        assert client.spent is not None
        assert client.spent.epsilon == pytest.approx(spent), "before it is shared: shared or not, it is charged"
        client.share_gradients()
        assert TrainReport.from_json(raw_reply(run.reply(asked).content).report) == report
    assert (report.examples, report.tokens, report.loss) == (1, 0, None)


def test_a_round_that_the_site_policy_refuses_is_an_error_on_both_sides(
    whole: Any, run: Any, teacher: Participant, team_code: Path, tmp_path: Path
) -> None:
    _, node = whole("careful", tmp_path / "home")
    policy = tmp_path / "policy.yaml"
    policy.write_text("allow: {max_steps: 2}\n")
    plan = plan_for(teacher)
    _, state = state_for(teacher, plan)
    with FederatedClient("team", home=tmp_path / "home", base="nf-tiny", policy=policy) as client:
        asked = run.ask(node, plan_to_records(plan, state))
        with pytest.raises(FederationError, match="asked for 3 steps, allowed: at most 2"):
            client.train_local(team_code)
        assert "asked for 3 steps, allowed: at most 2" in run.reply(asked).error.reason


def test_a_stop_ends_the_waiting_for_a_round(whole: Any, team_code: Path, tmp_path: Path) -> None:
    whole("patient", tmp_path)
    stop = threading.Event()
    with FederatedClient("team", home=tmp_path, base="nf-tiny", stop=stop.is_set) as client:
        threading.Timer(1, stop.set).start()
        with pytest.raises(FederationError, match="stopped before a round"):
            client.train_local(team_code)


def test_the_class_is_found_where_the_guide_says_without_loading_torch_for_its_neighbours() -> None:
    code = "import sys, neuralforge.federation; print({'torch', 'flwr', 'grpc'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    assert neuralforge.federation.FederatedClient is FederatedClient
    with pytest.raises(AttributeError, match="Nothing"):
        _ = neuralforge.federation.Nothing  # type: ignore[attr-defined]


def test_the_command_line_says_how_to_join(cli: Cli, team_code: Path, tmp_path: Path) -> None:
    for more in ([], ["--dry-run"]):
        done = cli(
            *("train", "--server", "nf://127.0.0.1:1", "--source", team_code, *more),
            cwd=tmp_path,
            NEURALFORGE_HOME=str(tmp_path / "home"),
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)
        assert "this machine has not joined nf://127.0.0.1:1" in done.stderr
        assert "nf-client join nf://127.0.0.1:1#sha256:… TOKEN" in done.stderr


@pytest.mark.slow
def test_a_client_takes_part_until_the_federation_is_over(tmp_path: Path) -> None:
    team = Team(place=tmp_path, members=("ann",), rounds=2)
    try:
        team.wait_for_server(server := team.start_server())
        team.join_all()
        client = team.start_client("ann", "--resume", "auto", "--rank", "2")
        assert client.ends(120) == 0, client.said
        assert server.ends(30) == 0, server.said
        said = client.said
        assert "lora.rank, output.resume: not used here, the coordinator says how a round is trained" in said
        for number in (1, 2):
            assert re.search(rf"^round {number}/2: 3 steps, loss \d\.\d+, \d+\.\d KB sent, \d+\.\d s$", said, re.M)
        assert re.search(r"^│ perplexity ", said, re.M)
        assert "saved ann-together.lora" in said
        assert read_adapter_folder(tmp_path / "ann-together.lora").spec.rank == 4
    finally:
        team.stop_all()


@pytest.mark.slow
def test_a_client_that_is_told_to_end_says_goodbye_and_how_to_go_on(tmp_path: Path) -> None:
    team = Team(place=tmp_path, members=("ann", "bob"))
    try:
        team.wait_for_server(team.start_server())
        team.join_all()
        client = team.start_client("ann")
        wait_until(lambda: "online" in client.said, seconds=60, what="ann is online")
        client.popen.send_signal(signal.SIGTERM)
        assert client.ends(20) == 128 + signal.SIGTERM
        assert "stopped, and the server knows\nto go on: " in client.said
        again = team.start_client("ann")  # at once: no old session is in the way
        wait_until(lambda: "online" in again.said, seconds=60, what="ann is online again")
        assert "earlier session" not in again.said
        revoked = team.run("nf-server", "revoke", "ann")
        assert revoked.returncode == 0, revoked.stderr
        assert again.ends(60) == 1
        assert "revoked" in again.said.splitlines()[-2]
    finally:
        team.stop_all()
