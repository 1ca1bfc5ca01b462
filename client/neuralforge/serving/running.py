"""Servers that run on this machine: a private file for each, with where it is and the token that may change it.

$NEURALFORGE_HOME or ~/.neuralforge
└── serving/<port>.json
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from neuralforge_common.errors import AdapterError, ServingError, StorageError
from neuralforge_common.key_files import make_private_folder, read_private_file, write_private_file
from neuralforge_common.strict_json import is_plain_text, parse_json_object

_LIMIT = 16 * 1024
_SECONDS = 120.0
_FOLDER = "serving"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Where a server is, and the token for its `/adapters/…`."""

    host: str
    port: int
    admin_token: str

    def load(self, path: Path) -> str:
        """Have an adapter loaded; returns its name.

        Raises:
            ServingError: the server does not answer, or refuses the adapter.
        """
        answer = self._post("/adapters/load", {"path": str(path)})
        return str(answer.get("loaded", ""))

    def answers(self) -> bool:
        """Whether something listens there that says that it is well."""
        try:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=2)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _post(self, path: str, document: dict[str, str]) -> dict[str, object]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_SECONDS)
        headers = {"Authorization": f"Bearer {self.admin_token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(document), headers)
            response = connection.getresponse()
            data = response.read(_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"the server at {self.host}:{self.port} does not answer ({error})") from error
        finally:
            connection.close()
        answer = parse_json_object(data, what="the server's answer", limit=_LIMIT)
        if response.status != 200:
            fault = answer.get("error")
            message = fault.get("message", "") if isinstance(fault, dict) else ""
            raise ServingError(str(message) if is_plain_text(str(message)) and message else f"HTTP {response.status}")
        return answer


@contextmanager
def announced(server: RunningServer, *, home: Path) -> Iterator[Path]:
    """The server's file exists for as long as the block runs.

    Raises:
        StorageError: it cannot be written, or others may look into the folder.
    """
    folder = home / _FOLDER
    make_private_folder(folder)
    path = folder / f"{server.port}.json"
    data = json.dumps(asdict(server)).encode() + b"\n"
    write_private_file(path, data)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:  # not that of a server that has taken the port over
                path.unlink()


def find_server(*, home: Path, port: int | None = None) -> RunningServer:
    """The server that runs on this machine, or the one at a port; files of servers that have died are ignored.

    Raises:
        ServingError: none runs, or several do and no port was named.
    """
    found = []
    for path in sorted((home / _FOLDER).glob("*.json")):
        if port is not None and path.name != f"{port}.json":
            continue
        with contextlib.suppress(StorageError, AdapterError, TypeError):
            server = _read(path)
            if server.answers():
                found.append(server)
    if not found:
        where = f" at port {port}" if port is not None else ""
        raise ServingError(f"no server of this user runs{where}", hint="neuralforge --adapter ./my-adapter.lora")
    if len(found) > 1:
        ports = ", ".join(str(server.port) for server in found)
        raise ServingError(f"{len(found)} servers run: wanted one of them to be named", hint=f"--port: {ports}")
    return found[0]


def _read(path: Path) -> RunningServer:
    values = parse_json_object(read_private_file(path), what=str(path), limit=_LIMIT)
    host, port, token = values.get("host"), values.get("port"), values.get("admin_token")
    if not isinstance(host, str) or not isinstance(port, int) or not isinstance(token, str):
        raise StorageError(f"{path}: not written by this program")
    return RunningServer(host=host, port=port, admin_token=token)
