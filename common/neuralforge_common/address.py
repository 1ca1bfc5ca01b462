"""Where a federation is, and which one it is: `nf://host:port#sha256:<fingerprint of its authority>`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from neuralforge_common.errors import UsageError
from neuralforge_common.strict_json import shortened

DEFAULT_PORT = 8470

_ADDRESS = re.compile(r"nf://(\[[^\[\]]*\]|[^\[\]:/?#@]*)(?::([^/?#]*))?(?:#(.*))?", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HINT = "copy the line that `nf-server init` or `nf-server invite` printed, such as nf://host:8470#sha256:…"


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationAddress:
    """A coordinator's enrolment port, and the SHA-256 of its authority's certificate (64 hex digits) where known.

    `host` is a DNS name in lower case or an IP address in its canonical form, without brackets.

    Raises:
        UsageError: a host, port or fingerprint that cannot be.
    """

    host: str
    port: int = DEFAULT_PORT
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", canonical_host(self.host))
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1 <= self.port <= 65_535:
            raise UsageError(f"port: wanted a whole number from 1 to 65,535, got {shortened(self.port)}", hint=_HINT)
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", self.fingerprint.lower())
            if not _FINGERPRINT.fullmatch(self.fingerprint):
                got = f"{len(self.fingerprint)} characters, {shortened(self.fingerprint)}"
                raise UsageError(f"fingerprint: wanted 64 hex digits, got {got}", hint=_HINT)

    @classmethod
    def parse(cls, text: str) -> FederationAddress:
        """Reads `nf://host:port#sha256:…`; port and fingerprint may be left out, an IPv6 address stands in brackets.

        Raises:
            UsageError: anything else.
        """
        found = _ADDRESS.fullmatch(text.strip())
        if not found:
            raise UsageError(f"address: wanted nf://host:port#sha256:…, got {shortened(text)}", hint=_HINT)
        host, port, mark = found.groups()
        if port is not None and not re.fullmatch("[0-9]{1,5}", port):
            raise UsageError(f"port: wanted a whole number from 1 to 65,535, got {shortened(port)}", hint=_HINT)
        if mark is not None and not mark.startswith("sha256:"):
            raise UsageError(f"fingerprint: wanted #sha256:<64 hex digits>, got {shortened('#' + mark)}", hint=_HINT)
        if host.startswith("["):
            host = host[1:-1]
            if ":" not in host:
                raise UsageError(f"host: wanted an IPv6 address in the brackets, got {shortened(host)}", hint=_HINT)
        return cls(
            host=host,
            port=DEFAULT_PORT if port is None else int(port),
            fingerprint=None if mark is None else mark.removeprefix("sha256:"),
        )

    @property
    def endpoint(self) -> str:
        """`host:port`, as gRPC and URLs write it."""
        return endpoint(self.host, self.port)

    def __str__(self) -> str:
        return f"nf://{self.endpoint}{'' if self.fingerprint is None else f'#sha256:{self.fingerprint}'}"


def endpoint(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(host: str) -> bool:
    """Whether a canonical host is an IP address and not a name."""
    return ":" in host or host.rpartition(".")[2].isdecimal()


def canonical_host(text: str) -> str:
    """A DNS name in lower case, or an IP address in its canonical form.

    Raises:
        UsageError: neither of them.
    """
    host = text.lower().removesuffix(".")
    try:
        if "%" not in host:  # a scope (fe80::1%eth0) means something on one machine only
            return str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
        # A last label of digits alone is a mistyped IPv4 address.
        if len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal():
            return host
    raise UsageError(f"host: wanted a DNS name or an IP address, got {shortened(text)}", hint=_HINT)
