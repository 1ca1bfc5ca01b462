"""What we build on in Flower's private modules, held by name: another version of flwr fails here and says where."""

import inspect
import tomllib
import zipfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flwr.app import message as message_module
from flwr.common import config, constant, serde
from flwr.proto import control_pb2, message_pb2, node_pb2, runtime_pb2
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.serverapp import Grid
from flwr.supercore import constant as core_constant
from flwr.supercore import interceptors, logger, retry
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.supercore.retry.retry_invoker import RetryInvoker, RetryState
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.state.schema import corestate_models, linkstate_models, objectstore_models
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app

from neuralforge_server.flower.bundle import app_description, build_bundle
from neuralforge_server.flower.grid import PatientGrid

REPOSITORY = Path(__file__).parents[2]


def test_flower_is_the_version_that_this_was_written_for() -> None:
    assert version("flwr").startswith("1.41.")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (SqlLinkState.activate_node, ["self", "node_id", "heartbeat_interval"]),
        (create_app, ["config", "superlink_lifespan_class"]),
        (SuperLinkLifespan.__init__, ["self", "config", "state_factory"]),
        (load_control_authn_plugin, []),
        (ControlHttpClient.from_server_address, [*["server_address", "insecure", "root_certificates"], "interceptors"]),
        (RetryInvoker.invoke, ["self", "target", "args", "kwargs"]),
        (HttpGrid.set_run, ["self", "run"]),
        (HttpGrid.push_messages, ["self", "messages"]),
        (HttpGrid.pull_messages, ["self", "message_ids"]),
        (HttpGrid.get_nodes, ["self"]),
        (HttpGrid.close, ["self"]),
        (message_module.make_message, ["metadata", "content", "error"]),
        (config.get_fused_config_from_fab, ["fab_file", "run"]),
        (serde.message_from_proto, ["message_proto"]),
        (serde.run_from_proto, ["run_proto"]),
        (serde.context_from_proto, ["context_proto"]),
        (serde.fab_to_proto, ["fab"]),
        (inflatable_object.iterate_object_tree, ["tree"]),
        (FlowerError.from_json, ["value"]),
        (interceptors.RuntimeTokenHttpInterceptor.__init__, ["self", "token"]),
        (interceptors.RuntimeVersionHttpInterceptor.__init__, ["self", "component_name"]),
        (interceptors.SuperExecAuthHttpInterceptor.__init__, ["self", "master_secret", "protected_methods"]),
    ],
)
def test_a_private_function_takes_what_we_give_it(function: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    assert set(required) <= set(parameters)


def test_the_superlinks_configuration_has_the_fields_that_we_fill_in() -> None:
    assert set(inspect.signature(SuperLinkLifespanConfig).parameters) == {
        *("control_address", "health_server_address", "host", "port", "insecure", "certificates"),
        *("superexec_auth_secret", "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log"),
        *("artifact_provider", "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation"),
        *("ssl_ca_certfile", "ssl_certfile", "ssl_keyfile", "database", "isolation", "runtime_dependency_install"),
    }


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (ControlHttpClient, "RegisterNode UnregisterNode ListNodes StartRun StopRun ListRuns close"),
        (RuntimeHttpClient, "AcquireTask PullTaskInput PushTaskOutput SendTaskHeartbeat PullMessages PullObject"),
        (RuntimeHttpClient, "PushMessages PushObject ConfirmMessageReceived GetNodes close"),
        (ProtobufClient, "from_server_address"),
        (ProtobufRequestContext, "__dataclass_fields__"),
        (RetryState, "__dataclass_fields__"),
        (retry, "RetryInvoker"),
        (inflatable_utils, "ObjectPushError inflate_object_from_contents"),
        (logger, "console_handler"),
        (type(TaskIdentity), "task_id run_id node_id"),
        (ApiErrorCode, "PUBLIC_KEY_ALREADY_IN_USE NODE_NOT_FOUND RUN_ALREADY_FINISHED"),
        (constant.ErrorCode, "UNKNOWN MESSAGE_UNAVAILABLE NODE_UNAVAILABLE"),
        (constant.SubStatus, "COMPLETED FAILED"),
        (constant.Status, "FINISHED"),
        (core_constant.NodeStatus, "ONLINE UNREGISTERED"),
        (core_constant.TaskType, "SERVER_APP"),
        (linkstate_models.Node, "status online_until heartbeat_interval"),
        (linkstate_models.MessageIns, "message_id delivered_at dst_node_id"),
        (linkstate_models.MessageRes, "message_id delivered_at reply_to_message_id"),
        (corestate_models.Task, "token finished_at active_until"),
        (corestate_models.ObjectPushSessionRoot, "root_object_id"),
        (objectstore_models.StoredObject, "object_id"),
    ],
)
def test_the_private_names_are_there(owner: Any, names: str) -> None:
    assert [name for name in names.split() if not hasattr(owner, name)] == []


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (control_pb2.RegisterNodeRequest, "public_key name"),
        (control_pb2.StartRunRequest, "fab override_config"),
        (control_pb2.ListRunsRequest, "limit run_id"),
        (node_pb2.NodeInfo, "node_id public_key name status online_until"),
        (runtime_pb2.AcquireTaskRequest, "supported_task_types"),
        (runtime_pb2.AcquireTaskResponse, "task token"),
        (runtime_pb2.PullTaskInputResponse, "context run fab task_id"),
        (runtime_pb2.PushTaskOutputRequest, "sub_status details"),
        (runtime_pb2.PullAppMessagesResponse, "messages_list message_object_trees"),
        (message_pb2.PullObjectResponse, "object_found object_available object_content"),
        (message_pb2.ObjectTree, "object_id children"),
    ],
)
def test_the_messages_have_the_fields_that_we_read_and_write(message: Any, names: str) -> None:
    assert set(names.split()) <= {field.name for field in message.DESCRIPTOR.fields}


def test_the_numbers_of_errors_and_times_are_those_that_we_count_on() -> None:
    assert int(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE) == 23
    assert (constant.ErrorCode.MESSAGE_UNAVAILABLE, constant.ErrorCode.NODE_UNAVAILABLE) == (3, 5)
    # A run ends after two intervals without a heartbeat: ours come every five seconds.
    assert (constant.HEARTBEAT_DEFAULT_INTERVAL, constant.HEARTBEAT_PATIENCE) == (30, 2)
    assert constant.HEARTBEAT_MIN_INTERVAL == 10
    # Pieces of arrays must fit into what the public port takes.
    assert constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE == 5 * 2**20


def test_our_grid_is_a_grid() -> None:
    assert issubclass(PatientGrid, Grid)
    assert not inspect.isabstract(PatientGrid)


# The Flower app


def test_the_app_for_a_flower_of_ones_own_is_the_one_that_we_start_ourselves() -> None:
    assert (REPOSITORY / "configs" / "flower-app" / "pyproject.toml").read_text("utf-8") == app_description()


def test_a_bundle_holds_a_description_and_no_code_and_is_the_same_every_time() -> None:
    bundle = build_bundle()
    assert bundle == build_bundle.__wrapped__()
    names = zipfile.ZipFile(BytesIO(bundle)).namelist()
    assert sorted(names) == [".info/CONTENT", "pyproject.toml"]


@pytest.mark.slow  # the client's component imports torch
def test_the_apps_components_are_there() -> None:
    from flwr.supercore.object_ref import load_app

    components = tomllib.loads(app_description())["tool"]["flwr"]["app"]["components"]
    for reference in components.values():
        assert load_app(reference, ImportError) is not None


def test_stock_flower_takes_the_app() -> None:
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    folder = REPOSITORY / "configs" / "flower-app"
    _, warnings = load_and_validate(folder / "pyproject.toml")
    assert warnings == []
    assert zipfile.ZipFile(BytesIO(build_fab_from_disk(folder))).testzip() is None
