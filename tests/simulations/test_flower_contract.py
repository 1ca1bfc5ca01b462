"""What our grid takes from Flower beside its public names; when one of these fails, read what Flower has changed."""

from __future__ import annotations

import inspect

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from neuralforge_simulations import adversary, grid


def test_a_message_takes_its_run_and_source_from_the_task_identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 77, 5
    message = Message(RecordDict(), 9, "train", ttl=3.0, group_id="g")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (77, 5, 9)
    assert (message.metadata.ttl, message.metadata.group_id, message.metadata.message_id) == (3.0, "g", "")


def test_a_message_id_is_written_where_flower_reads_it() -> None:
    message = Message(RecordDict(), 9, "train")
    message.metadata.__dict__["_message_id"] = "m"
    assert message.metadata.message_id == "m"
    reply = Message(RecordDict(), reply_to=message)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == ("m", 9)


def test_codes_and_keys_are_those_of_a_real_grid() -> None:
    assert (ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED) == (5, 8)
    assert (grid.PARTITION_ID, grid.NUM_PARTITIONS) == (PARTITION_ID_KEY, NUM_PARTITIONS_KEY)
    assert adversary.PARTITION_ID == PARTITION_ID_KEY


def test_a_grid_has_no_more_to_implement_than_ours_does() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
    assert Run.create_empty(1).run_id == 1
    assert "run_config" in inspect.signature(Context).parameters


def test_starting_a_simulation_from_python_is_still_deprecated() -> None:
    """Why `--backend ray` goes through `flwr run`; should Flower bring a way back, take it."""
    simulation = pytest.importorskip("flwr.simulation.run_simulation")
    assert "deprecated" in inspect.getsource(simulation.run_simulation)
