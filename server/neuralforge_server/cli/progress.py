"""A federation as its operator sees it: a line for everything that happens."""

from __future__ import annotations

import time

from neuralforge_server import events


class FederationProgress:
    """An observer that prints plain lines with the time of day."""

    def say(self, line: str) -> None:
        """One line, at once: whoever pipes this into a file wants to follow it."""
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)

    def __call__(self, event: events.Event) -> None:
        """Say what the event says."""
        match event:
            case events.Waiting():
                self.say(f"{event.online} of {event.wanted} clients are here; waiting")
            case events.Opened():
                for notice in event.notices:
                    self.say(notice)
                begun = f"going on after round {event.done}" if event.done else "beginning"
                self.say(f"{begun}: {event.summary}, {event.rounds} rounds")
            case events.RoundBegan():
                asked = f"{len(event.clients)} clients, {event.bytes_down / 1e6:.1f} MB each"
                self.say(f"round {event.round}: asked {asked}: {', '.join(event.clients)}")
            case events.Accepted():
                loss = "" if event.report.loss is None else f", loss {event.report.loss:.3f}"
                # 0 is what a report says of what it keeps.
                seconds = f", {event.report.seconds:.0f} s" if event.report.seconds else ""
                self.say(
                    f"round {event.round}: {event.client}: {event.report.examples} examples{loss}, "
                    f"norm {event.norm:.3g}, {event.bytes_up / 1e6:.1f} MB{seconds}"
                )
            case events.Turned():
                self.say(f"round {event.round}: {event.client}: no update ({event.reason}): {event.message}")
            case events.Unmasked():
                self.say(
                    f"round {event.round}: secure aggregation (experimental): {event.keys} clients sent keys, "
                    f"{event.shares} shares, {len(event.clients)} an update under masks, {event.unmasked_by} took the "
                    f"masks off the sum: {', '.join(event.clients)}"
                )
            case events.RoundCommitted():
                loss = "" if event.loss is None else f", loss {event.loss:.3f}"
                error = "" if event.exactness_error is None else f", exactness error {event.exactness_error:.2g}"
                self.say(
                    f"round {event.round} of {event.rounds} committed: {event.clients} clients{loss}{error}, "
                    f"{event.seconds:.0f} s"
                )
                for spent in event.privacy:
                    self.say(f"privacy spent so far: {spent}")
            case events.BelowQuorum():
                self.say(
                    f"round {event.round}, attempt {event.attempt}: {event.clients} updates, {event.wanted} are "
                    "needed: nothing was committed, the round is tried again"
                )
            case events.Scored():
                told = ", ".join(f"{score.client} {score.loss:.3f}" for score in event.scores)
                self.say(f"round {event.round}: held-out loss {told}")
            case events.Finished():
                self.say(
                    f"all {event.rounds} rounds are done; the adapter went to {', '.join(event.clients) or 'nobody'}"
                )
