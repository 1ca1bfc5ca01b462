"""A coordinator's configuration: its defaults, its bounds, and what is refused before a single round is run."""

from pathlib import Path

import pytest
import yaml
from config_documents import faults_of

from neuralforge_common.config.resolve import flatten
from neuralforge_server.config import ServerConfig
from neuralforge_server.config_rules import SERVER, resolve_server_config

OURS = Path(__file__).parents[2] / "configs" / "server.yaml"


def notices_of(tmp_path: Path, content: str) -> tuple[str, ...]:
    (tmp_path / "n.yaml").write_text(content)
    return resolve_server_config(tmp_path / "n.yaml", {}, {}).notices


def test_our_own_example_loads_without_notices() -> None:
    resolved = resolve_server_config(OURS, {}, {})
    written = yaml.safe_load(OURS.read_text())
    keys = {f"{section}.{key}" for section, entries in written.items() for key in entries}
    assert {key for key, origin in resolved.origins.items() if origin.kind == "file"} == keys
    assert resolved.config.wire.format == "fp16"
    assert resolved.notices == ()


def test_the_defaults_are_a_small_team() -> None:
    resolved = resolve_server_config(None, {}, {})
    assert resolved.config == ServerConfig()
    assert resolved.notices == ()
    assert resolved.config.federation.resolved_quorum == resolved.config.federation.min_clients == 2
    assert resolved.config.adapter.resolved_alpha == 2 * resolved.config.adapter.rank
    assert resolved.config.training.resolved_steps == 20


def test_the_environment_has_a_prefix_of_its_own() -> None:
    environ = {"NF_SERVER_FEDERATION_ROUNDS": "3", "NF_FEDERATION_ROUNDS": "4", "NF_TRAINING_EPOCHS": "5"}
    resolved = resolve_server_config(None, {}, environ)
    assert resolved.config.federation.rounds == 3
    assert {key for key, origin in resolved.origins.items() if origin.kind != "default"} == {"federation.rounds"}
    assert str(resolved.origins["federation.rounds"]) == "NF_SERVER_FEDERATION_ROUNDS"


def test_a_misspelt_variable_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    assert faults_of(SERVER, tmp_path, "", environ={"NF_SERVER_LISTEN_PROT": "1"}) == (
        "NF_SERVER_LISTEN_PROT: unknown variable, did you mean NF_SERVER_LISTEN_PORT?",
    )


@pytest.mark.parametrize(
    ("settings", "quorum"),
    [
        ({"min_clients": 5}, 5),
        ({"min_clients": 5, "sample": 3}, 3),
        ({"min_clients": 5, "sample": 8}, 5),
        ({"min_clients": 5, "quorum": 4}, 4),
    ],
)
def test_a_quorum_that_nobody_set_is_what_a_round_can_count_on(settings: dict[str, int], quorum: int) -> None:
    overrides = {f"federation.{name}": value for name, value in settings.items()}
    assert resolve_server_config(None, overrides, {}).config.federation.resolved_quorum == quorum


def test_epochs_on_the_command_line_replace_the_files_steps(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("training:\n  steps: 30\n")
    training = resolve_server_config(tmp_path / "s.yaml", {"training.epochs": 2}, {}).config.training
    assert (training.resolved_steps, training.epochs) == (None, 2)
    training = resolve_server_config(tmp_path / "s.yaml", {}, {}).config.training
    assert (training.resolved_steps, training.epochs) == (30, None)


def test_with_an_epoch_nobody_counts_default_steps() -> None:
    assert resolve_server_config(None, {"training.epochs": 1}, {}).config.training.resolved_steps is None


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("federation.name", "a team", "a name of letters, digits, dots, dashes and underscores (at most 100)"),
        ("federation.rounds", "0", "a whole number from 1 to 1,000,000"),
        ("federation.min_clients", "0", "a whole number ≥ 1"),
        ("federation.over_select", "0.9", "a number from 1 to 3"),
        ("federation.over_select", "3.1", "a number from 1 to 3"),
        ("federation.deadline_minutes", "0", "minutes: a number above 0, at most 43,200"),
        ("federation.wait_minutes", "inf", "minutes: a number above 0, at most 43,200"),
        ("federation.evaluate_every", "-1", "a whole number ≥ 0"),
        ("adapter.rank", "257", "a whole number from 1 to 256"),
        ("adapter.dropout", "1", "a number from 0 to below 1"),
        ("training.epochs", "1001", "a whole number from 1 to 1,000"),
        ("training.learning_rate", "1.5", "a number above 0, at most 1"),
        ("training.schedule", "step", "constant, linear or cosine"),
        ("training.proximal_mu", "nan", "a number ≥ 0"),
        ("aggregation.method", "fedavg", "mean, frozen-a, alternating, stacking, residual, svd or personal"),
        ("aggregation.robust", "krum", "none, clip, median, trimmed-mean, multi-krum or geometric-median"),
        ("aggregation.trim", "0.5", "a number from 0 to below 0.5"),
        ("aggregation.byzantine", "-1", "a whole number ≥ 0"),
        ("aggregation.beta2", "1", "a number from 0 to below 1"),
        ("aggregation.max_weight", "0", "a whole number ≥ 1"),
        ("admission.max_update_norm", "0", "a number above 0"),
        ("admission.max_report_bytes", "16385", "a whole number from 1,024 to 16,384"),
        ("wire.format", "bf16", "fp32, fp16 or int8"),
        ("listen.port", "0", "a port from 1 to 65535"),
        ("listen.port", "65536", "a port from 1 to 65535"),
    ],
)
def test_a_value_out_of_bounds_is_told_what_was_wanted(tmp_path: Path, key: str, value: str, wanted: str) -> None:
    section, _, name = key.partition(".")
    (fault,) = faults_of(SERVER, tmp_path, f"{section}:\n  {name}: {value}\n")
    assert fault.startswith(f"c.yaml:2: {key}: wanted {wanted}, got ")


ROBUST = ("median", "trimmed-mean", "multi-krum", "geometric-median")
FREE_BASIS = ("stacking", "residual", "svd")
METHODS = ("mean", "frozen-a", "alternating", *FREE_BASIS, "personal")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("robust", ["none", "clip", *ROBUST])
def test_a_robust_rule_needs_coordinates_that_clients_have_in_common(tmp_path: Path, method: str, robust: str) -> None:
    content = f"federation:\n  min_clients: 9\naggregation:\n  method: {method}\n  robust: {robust}\n"
    faults = faults_of(SERVER, tmp_path, content)
    if robust in ROBUST and method in FREE_BASIS:
        assert faults == (
            f"c.yaml:5: aggregation.robust: {robust} compares updates coordinate by coordinate, and the factors of "
            f"{method} have a free basis: wanted none or clip, or another aggregation.method",
        )
    else:
        assert faults == ()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["fedavg", "momentum", "nesterov", "fedadam", "fedyogi"])
def test_a_servers_optimizer_needs_matrices_that_stay_the_same_ones(
    tmp_path: Path, method: str, optimizer: str
) -> None:
    content = f"aggregation:\n  method: {method}\n  optimizer: {optimizer}\n"
    faults = faults_of(SERVER, tmp_path, content)
    if optimizer != "fedavg" and method in ("stacking", "svd"):
        assert faults == (
            f"c.yaml:3: aggregation.optimizer: {optimizer} keeps moments of the matrices, and {method} factors them "
            "anew every round: wanted fedavg, or another aggregation.method",
        )
    else:
        assert faults == ()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "training:\n  steps: 5\n  epochs: 1\n",
            "c.yaml:3: training.epochs: cannot be used together with training.steps",
        ),
        (
            "federation:\n  min_clients: 9\n  sample: 4\n  quorum: 5\n",
            "c.yaml:4: federation.quorum: 5 updates never arrive: a round takes 4 (federation.sample)",
        ),
        (
            "federation:\n  quorum: 3\n",
            "c.yaml:2: federation.quorum: a round may begin with 2 clients (federation.min_clients), fewer than 3",
        ),
        (
            "aggregation:\n  robust: multi-krum\n",
            "c.yaml:2: aggregation.robust: multi-krum against 1 (aggregation.byzantine) needs 5 updates, and a round "
            "may count with 2: raise federation.min_clients and federation.quorum",
        ),
        (
            "adapter:\n  rank: 225\naggregation:\n  method: stacking\n",
            "c.yaml:2: aggregation.residual_rank: makes a rank of 257 together with adapter.rank, "
            "at most 256 are possible",
        ),
        (
            "aggregation:\n  method: residual\n  residual_rank: 249\n",
            "c.yaml:3: aggregation.residual_rank: makes a rank of 257 together with adapter.rank, "
            "at most 256 are possible",
        ),
        (
            "listen:\n  port: 9000\n  fleet_port: 9000\n",
            "c.yaml:3: listen.fleet_port: 9000 is listen.port already",
        ),
        (
            "listen:\n  port: 8473\n",
            "c.yaml:2: listen.admin_port: 8473 is listen.port already",
        ),
    ],
)
def test_keys_that_cannot_go_together_are_a_fault_with_its_reason(tmp_path: Path, content: str, fault: str) -> None:
    assert faults_of(SERVER, tmp_path, content) == (fault,)


@pytest.mark.parametrize(
    "content",
    [
        "federation:\n  min_clients: 9\n  sample: 4\n  quorum: 4\n",
        "federation:\n  min_clients: 5\naggregation:\n  robust: multi-krum\n",
        "federation:\n  min_clients: 9\n  quorum: 7\naggregation:\n  robust: multi-krum\n  byzantine: 2\n",
        "adapter:\n  rank: 224\naggregation:\n  method: stacking\n",
        "adapter:\n  rank: 256\naggregation:\n  method: svd\n",
    ],
)
def test_the_last_values_that_still_go_together_are_none(tmp_path: Path, content: str) -> None:
    assert faults_of(SERVER, tmp_path, content) == ()


def test_a_quorum_below_what_multi_krum_needs_is_a_fault_whatever_min_clients_says(tmp_path: Path) -> None:
    content = "federation:\n  min_clients: 9\n  quorum: 4\naggregation:\n  robust: multi-krum\n"
    (fault,) = faults_of(SERVER, tmp_path, content)
    assert "needs 5 updates, and a round may count with 4" in fault


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        ("federation:\n  over_select: 1.5\n", "federation.over_select has no effect without federation.sample"),
        ("aggregation:\n  trim: 0.1\n", "aggregation.trim has no effect without aggregation.robust: trimmed-mean"),
        (
            "aggregation:\n  byzantine: 2\n",
            "aggregation.byzantine has no effect without aggregation.robust: multi-krum",
        ),
        (
            "aggregation:\n  residual_rank: 8\n",
            "aggregation.residual_rank has no effect without aggregation.method: stacking or residual",
        ),
        (
            "aggregation:\n  optimizer: momentum\n  tau: 0.1\n",
            "aggregation.tau has no effect without aggregation.optimizer: fedadam or fedyogi",
        ),
        (
            "aggregation:\n  momentum: 0.5\n",
            "aggregation.momentum has no effect without an aggregation.optimizer other than fedavg",
        ),
        (
            "training:\n  steps: 2\n",
            "training.warmup_steps (2) is not below training.steps (2): the warm-up will be cut",
        ),
        (
            "federation:\n  min_clients: 4\naggregation:\n  robust: trimmed-mean\n",
            "trimmed-mean cuts nothing from a round of 4 updates: aggregation.trim is 0.2, "
            "and federation.quorum or federation.min_clients allows so few",
        ),
    ],
)
def test_a_setting_without_its_effect_is_told_in_one_line(tmp_path: Path, content: str, notice: str) -> None:
    assert notices_of(tmp_path, content) == (notice,)


@pytest.mark.parametrize(
    "content",
    [
        "federation:\n  min_clients: 5\naggregation:\n  robust: trimmed-mean\n  trim: 0.2\n",
        "federation:\n  sample: 2\n  over_select: 1.5\n",
        "aggregation:\n  optimizer: fedyogi\n  tau: 0.1\n  beta2: 0.9\n  momentum: 0.8\n",
        "training:\n  epochs: 1\n  warmup_steps: 50\n",
    ],
)
def test_where_all_is_well_nothing_is_said(tmp_path: Path, content: str) -> None:
    assert notices_of(tmp_path, content) == ()


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    content = "federation:\n  rouns: 3\n  quorum: 7\nlisten:\n  port: none\naggregation:\n  optimizer: sgd\n"
    assert [fault.partition(": ")[0] for fault in faults_of(SERVER, tmp_path, content)] == [
        "c.yaml:2",
        "c.yaml:3",
        "c.yaml:5",
        "c.yaml:7",
    ]


def test_the_ports_are_those_of_the_documentation() -> None:
    flat = flatten(ServerConfig())
    ports = {name: flat[f"listen.{name}"] for name in ("port", "member_port", "fleet_port", "admin_port")}
    assert ports == {"port": 8470, "member_port": 8471, "fleet_port": 8472, "admin_port": 8473}
