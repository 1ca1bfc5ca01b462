"""The one place on the server that calls Flower's private modules. flwr is pinned; a contract test holds the names.

    app.py       Flower's SuperLink as an ASGI application, and the filters in front of its two ports
    bundle.py    the Flower App Bundle without code that a run is started with
    control.py   nodes and runs: Flower's Control API
    grid.py      a run's messages: Flower's Runtime API, patient where a SuperLink goes away and comes back
    calls.py     what both APIs' calls share: our key, retries, errors

Flower's own clients end the whole process with SIGINT when a token is refused and wait without end when nobody answers;
none of that happens here.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")

from neuralforge_server.flower.calls import GridLost
from neuralforge_server.flower.control import Control, RegisteredNode
from neuralforge_server.flower.grid import PatientGrid, open_grid

__all__ = ["Control", "PatientGrid", "RegisteredNode", "GridLost", "open_grid"]
