"""Held-out figures that a client gives: read as a stranger's."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from neuralforge_common.errors import NeuralForgeError
from neuralforge_common.strict_json import parse_json_object
from neuralforge_server.events import Score

MAX_BYTES = 4096


def read_score(client: str, content: RecordDict) -> Score | None:
    """A client's scores; None where it gives none, or none that can be true."""
    record = content.get("answer")
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        return None
    try:
        document = parse_json_object(text.encode(), what="the scores", limit=MAX_BYTES)
    except NeuralForgeError:
        return None
    loss, accuracy, tokens = (document.get(name) for name in ("loss", "accuracy", "tokens"))
    if not (isinstance(loss, float | int) and isinstance(accuracy, float | int) and isinstance(tokens, int)):
        return None
    if not (0 <= loss < 1e6 and 0 <= accuracy <= 1 and 0 < tokens < 2**40):
        return None
    return Score(client=client, loss=float(loss), accuracy=float(accuracy), tokens=tokens)
