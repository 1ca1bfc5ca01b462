"""The configuration that `nf-server init` writes: what most federations change, with words; the rest has defaults."""

from __future__ import annotations

import json
from pathlib import Path

_TEMPLATE = """\
# What this federation does. A change counts from the next `nf-server start`; what is not named here has its default.
federation:
  name: {name}
  rounds: 10
  min_clients: 2                  # a round begins with so many members at hand
  quorum: null                    # updates for a round to count; none given: min_clients
  deadline_minutes: 30            # a round waits no longer than this for its updates

adapter:
  base: smollm2-135m              # every member must hold this base
  rank: 8
  target_modules: auto            # every linear layer of the base

training:                         # what a member does in a round
  steps: 20                       # or `epochs: 1`: a pass over its own data, whatever their number
  batch_size: 4
  learning_rate: 0.003

aggregation:
  method: mean                    # or frozen-a, alternating, stacking, residual, svd, personal
  robust: clip                    # no update counts for more than its norm should; or none, median, …

privacy:                          # what a member's rounds may tell at most of one of its samples
  enabled: false
  target_epsilon: 8               # for all rounds together

wire:
  format: fp16                    # half the bytes of fp32; int8 a quarter

listen:
  host: 0.0.0.0
  port: {port}                      # the port of the address nf://…, where members enrol
  member_port: {member_port}
  fleet_port: {fleet_port}
  admin_port: {admin_port}                # of this machine alone

storage:
  directory: {directory}
"""


def server_yaml(*, name: str, directory: Path, port: int) -> str:
    """The text of a `server.yaml`; the four ports are `port` and the three after it."""
    return _TEMPLATE.format(
        # JSON's texts are YAML's: a name may hold a colon.
        name=json.dumps(name, ensure_ascii=False),
        directory=json.dumps(str(directory), ensure_ascii=False),
        port=port,
        member_port=port + 1,
        fleet_port=port + 2,
        admin_port=port + 3,
    )
