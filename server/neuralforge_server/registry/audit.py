"""The audit log: who did what to what, and when. Rows are added and never changed; no secret is ever in one."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from neuralforge_server.registry import schema
from neuralforge_server.registry.schema import Database

OPERATOR = "operator"
"""Who works on the registry's own machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that was done; `at` in seconds since 1970."""

    at: float
    who: str
    what: str
    subject: str
    detail: str


def record(connection: Connection, *, at: float, who: str, what: str, subject: str, detail: str = "") -> None:
    """Adds an entry, in the transaction of what it tells of: neither is there without the other."""
    connection.execute(sa.insert(schema.audit).values(at=at, who=who, what=what, subject=subject, detail=detail))


def read(database: Database, *, last: int = 100) -> tuple[AuditEntry, ...]:
    """The last entries, the oldest of them first."""
    table = schema.audit.c
    query = sa.select(table.at, table.who, table.what, table.subject, table.detail)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(table.id.desc()).limit(last)).all()
    return tuple(AuditEntry(**row._mapping) for row in reversed(rows))
