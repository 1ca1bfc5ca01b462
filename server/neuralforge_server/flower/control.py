"""Nodes and runs of our SuperLink, through Flower's Control API."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

from neuralforge_common.certificates import openssh_public_key
from neuralforge_common.errors import FederationError
from neuralforge_server.flower.bundle import build_bundle
from neuralforge_server.flower.calls import PATIENCE, control_client, error_code, explained


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredNode:
    """A node that may connect; `public_key` as OpenSSH writes it, without a comment."""

    node_id: int
    public_key: str
    name: str
    online: bool


class Control:
    """The SuperLink at `address` (host:port of its loopback port); a call waits `patience` seconds for it to come up.

    Every method raises FederationError where the SuperLink refuses or stays away.
    """

    def __init__(self, address: str, secret: bytes, *, patience: float = PATIENCE) -> None:
        self._client = control_client(address, secret, patience=patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def register_node(self, public_key: str, name: str) -> int:
        """The id of the node with this key, which may connect from now on; one that may already keeps its id.

        A key that was unregistered once can never come back: Flower does not allow it.
        """
        key = _to_flower(public_key)
        request = RegisterNodeRequest(public_key=key, name=name)
        try:
            return int(self._call(f"register {name}", self._client.RegisterNode, request).node_id)
        except _AlreadyThere as error:
            known = {node.public_key: node.node_id for node in self.list_nodes().values()}
            node_id = known.get(_to_openssh(key))
            if node_id is None:
                raise FederationError(
                    f"cannot register {name}: its key was revoked once", hint="join again with a fresh key"
                ) from error
            return node_id

    def unregister_node(self, node_id: int) -> None:
        """From now on the node with this id is refused, and what it was asked to do is void."""
        request = UnregisterNodeRequest(node_id=node_id)
        with contextlib.suppress(_AlreadyGone):
            self._call(f"unregister node {node_id}", self._client.UnregisterNode, request)

    def list_nodes(self) -> dict[int, RegisteredNode]:
        """All nodes that may connect, by id."""
        found = self._call("list the nodes", self._client.ListNodes, ListNodesRequest())
        return {
            node.node_id: RegisteredNode(
                node_id=node.node_id,
                public_key=_to_openssh(node.public_key),
                name=node.name,
                online=node.status == NodeStatus.ONLINE,
            )
            for node in found.nodes_info
            if node.status != NodeStatus.UNREGISTERED
        }

    def start_run(self) -> int:
        """A fresh run of our app; returns its id."""
        content = build_bundle()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        run_id = int(self._call("start a run", self._client.StartRun, StartRunRequest(fab=fab_to_proto(fab))).run_id)
        if not run_id:
            raise FederationError("the SuperLink started no run", hint="see superlink.log")
        return run_id

    def stop_unfinished_runs(self, *, but: int | None = None) -> tuple[int, ...]:
        """Stops every run that is not over, except `but`, and frees what the others left; returns what it stopped."""
        runs = self._call("list the runs", self._client.ListRuns, ListRunsRequest(limit=1000)).run_dict
        going_on = {run_id for run_id, run in runs.items() if run.status.status != Status.FINISHED}
        unfinished = tuple(sorted(going_on - {but}))
        for run_id in unfinished:
            try:
                self._call(f"stop run {run_id}", self._client.StopRun, StopRunRequest(run_id=run_id))
            except _AlreadyGone:
                continue
        return unfinished

    @staticmethod
    def _call(what: str, method: Callable[[Any], Any], request: Any) -> Any:
        with explained(what):
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                code = error_code(error)
                if code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                    raise _AlreadyThere from error
                if code in (ApiErrorCode.NODE_NOT_FOUND, ApiErrorCode.RUN_ALREADY_FINISHED):
                    raise _AlreadyGone from error
                raise


class _AlreadyThere(Exception):
    pass


class _AlreadyGone(Exception):
    pass


def _to_flower(public_key: str) -> bytes:
    try:
        key = load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FederationError("this is not a public key in OpenSSH's format") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FederationError(f"a node's key: wanted one on a NIST curve, got {type(key).__name__}")
    return public_key_to_bytes(key)


def _to_openssh(key: bytes) -> str:
    return openssh_public_key(bytes_to_public_key(key))
