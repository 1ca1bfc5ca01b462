"""The one place on a developer's machine that calls Flower's private modules. A contract test holds their names.

    fleet.py    a session at the Fleet API: messages come, replies go, heartbeats in between
    calls.py    its single calls: TLS, signatures, errors

Not `flwr.supernode.fleet_http_connection`: that one ends the process (`flwr_exit`, `os.kill`) where a server is gone or
refuses, and fetches bundles of code. Here every failure is a FederationError, and no bundle is ever asked for.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from neuralforge.federation.flower.calls import MessageLost, ServerAway
from neuralforge.federation.flower.fleet import DAY, Fleet, Stopped, connect, error_reply

__all__ = ["DAY", "Fleet", "MessageLost", "ServerAway", "Stopped", "connect", "error_reply"]
