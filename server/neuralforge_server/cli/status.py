"""`status`: who may take part, and which rounds are committed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge_server.cli.folder import add_directory, opened

if TYPE_CHECKING:
    from neuralforge_server.ledger import Ledger

NAME = "status"
SUMMARY = "Show who has joined, the committed rounds, who was refused and why, and what privacy has been spent."
EXAMPLES = """\
  nf-server status
  nf-server status --directory /srv/federation --json"""

REFUSALS_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_directory(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read both databases and print."""
    import json

    from neuralforge_common.secagg.keys import fingerprint

    with opened(args.directory) as (state, identities):
        signing = identities.peer_identities()
        document: dict[str, Any] = {
            "fingerprint": state.fingerprint,
            "nodes": [
                {"name": n.name, "state": n.state, "joined": _time(n.joined), "rotated": _time(n.rotated)}
                | {"fingerprint": fingerprint(signing[n.name]) if n.name in signing else None}
                for n in identities.nodes()
            ],
            "invited": {name: _time(expires) for name, expires in identities.invited().items()},
            **_rounds(args.directory),
        }
    if args.json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        _print(document)
    return 0


def _rounds(directory: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from neuralforge_server.ledger import DATABASE, Ledger

    if not (directory / DATABASE).exists():
        return {"rounds": [], "refusals": [], "privacy": []}
    ledger = Ledger.look(directory)
    try:
        rounds = [
            {
                "round": r.round,
                "committed": r.committed,
                "attempts": r.attempts,
                "clients": int(r.figures.get("clients", 0)),
                "loss": r.figures.get("loss"),
                "exactness_error": r.figures.get("exactness_error"),
                "trust": "peers" if r.figures.get("trust_peers") else "server",
                "scores": {score["client"]: score["loss"] for score in r.scores},
            }
            for r in ledger.rounds()
            if r.round > 0
        ]
        refusals = [asdict(refusal) for refusal in ledger.refusals()]
        return {"rounds": rounds, "refusals": refusals, "privacy": privacy(ledger)}
    finally:
        ledger.close()


def privacy(ledger: Ledger) -> list[dict[str, Any]]:
    """What has been spent of each budget that the federation promises to keep, by the client that spent most."""
    from neuralforge_common.privacy import LEVELS
    from neuralforge_server.spending import worst

    found = []
    facts = ledger.facts()
    for name in ("privacy", "central"):
        if promised := facts.get(name):
            unit = promised.get("unit", "client")
            spent = worst(ledger.spent(unit), unit=unit, delta=promised["delta"])
            entry = {"by": name, "unit": unit, "level": LEVELS[unit], "epsilon": spent.epsilon, "steps": spent.steps}
            found.append(entry | {"delta": spent.delta, "target_epsilon": promised["target_epsilon"]})
    return found


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    members = Table(title="members", title_justify="left")
    for name in ("name", "state", "joined", "key changed"):
        members.add_column(name)
    for node in document["nodes"]:
        members.add_row(node["name"], node["state"], node["joined"], node["rotated"] or "")
    for name, expires in document["invited"].items():
        members.add_row(name, "invited", f"until {expires}", "")
    console.print(members)
    for node in document["nodes"]:
        if node["fingerprint"] is not None:
            console.print(f"{node['fingerprint']}  {node['name']} (its fingerprint under secure aggregation)")
    rounds = Table(title="committed rounds", title_justify="left")
    for name in ("round", "committed", "attempts", "clients", "loss", "exactness error", "held-out loss (mean)"):
        rounds.add_column(name, justify="left" if name == "committed" else "right")
    for entry in document["rounds"]:
        scores = [*entry["scores"].values()]
        rounds.add_row(
            str(entry["round"]),
            entry["committed"],
            str(entry["attempts"]),
            str(entry["clients"]),
            _figure(entry["loss"], ".3f"),
            _figure(entry["exactness_error"], ".2g"),
            _figure(sum(scores) / len(scores) if scores else None, ".3f"),
        )
    console.print(rounds)
    if masked := [entry["round"] for entry in document["rounds"] if entry["trust"] == "peers"]:
        console.print(f"secure aggregation (experimental): {len(masked)} rounds, the last one {masked[-1]}")
    for entry in document["privacy"]:
        noise = "by noise on each client" if entry["by"] == "privacy" else "by noise on the sum"
        console.print(
            f"privacy: ε = {entry['epsilon']:.3g} of {entry['target_epsilon']:g} spent at δ = {entry['delta']:g}, "
            f"{entry['level']} ({noise})",
            soft_wrap=True,
        )
    shown = document["refusals"][-REFUSALS_SHOWN:]
    if shown:
        refused = Table(title=f"updates that did not count (the last {len(shown)})", title_justify="left")
        for name in ("round", "attempt", "client", "reason", "message"):
            refused.add_column(name, overflow="fold")
        for refusal in shown:
            refused.add_row(*(str(refusal[name]) for name in ("round", "attempt", "client", "reason", "message")))
        console.print(refused)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _time(seconds: float | None) -> str | None:
    import datetime

    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
