"""Who may do what: teams, their members by the federation's node names, and tokens; read < publish < admin."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from neuralforge_common.errors import RegistryError
from neuralforge_common.registry.release import check_team
from neuralforge_server.identity import validate_name
from neuralforge_server.registry import schema
from neuralforge_server.registry.audit import OPERATOR, record
from neuralforge_server.registry.schema import Database

Scope = Literal["read", "publish", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

MAX_TOKEN_CHARACTERS = 128
# A prefix that secret scanners can know, and that no shell or parser takes for an option.
_TOKEN_PREFIX = "nfr_"  # noqa: S105


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a request is from: a name for the audit log (empty: nobody in particular), and scopes by team."""

    name: str = ""
    teams: Mapping[str, Scope] = field(default_factory=dict)

    def may(self, scope: Scope, team: str) -> bool:
        """Whether the caller has this scope, or a higher one, in a team."""
        held = self.teams.get(team)
        return held is not None and SCOPES.index(held) >= SCOPES.index(scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as it is listed; nothing of it can be shown again. Times in seconds since 1970."""

    id: str
    team: str
    scope: Scope
    made: float
    expires: float
    revoked: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """A team and its members' scopes."""

    name: str
    members: Mapping[str, Scope]


class Access:
    """Teams, members and tokens in a registry's database; `clock` gives seconds since 1970."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add_team(self, team: str) -> bool:
        """Makes a team; false where it is there. Raises AdapterError for what cannot be a team's name."""
        check_team(team)
        with self._database.writing() as connection:
            if self._is_team(connection, team):
                return False
            connection.execute(sa.insert(schema.teams).values(name=team, added=self._clock()))
            record(connection, at=self._clock(), who=OPERATOR, what="team add", subject=team)
        return True

    def add_member(self, team: str, member: str, scope: Scope) -> None:
        """Gives a node of the federation a scope in a team, in the place of the one that it has.

        Raises:
            UsageError: not the name of a node.
            RegistryError: there is no such team.
        """
        validate_name(member)
        with self._database.writing() as connection:
            self._need_team(connection, team)
            table = schema.members
            connection.execute(sa.delete(table).where(table.c.team == team, table.c.member == member))
            connection.execute(sa.insert(table).values(team=team, member=member, scope=scope))
            what = f"member {member}, {scope}"
            record(connection, at=self._clock(), who=OPERATOR, what="team member", subject=team, detail=what)

    def remove_member(self, team: str, member: str) -> None:
        """Takes a node out of a team; what it has published stays. Raises RegistryError where it is not in it."""
        table = schema.members
        with self._database.writing() as connection:
            gone = connection.execute(sa.delete(table).where(table.c.team == team, table.c.member == member))
            if not gone.rowcount:
                raise RegistryError(f"{member} is not in the team {team}", hint="nf-server registry team list")
            record(connection, at=self._clock(), who=OPERATOR, what="team remove", subject=team, detail=member)

    def teams(self) -> tuple[Team, ...]:
        """Every team, by name."""
        with self._database.reading() as connection:
            names = connection.scalars(sa.select(schema.teams.c.name).order_by(schema.teams.c.name)).all()
            rows = connection.execute(sa.select(schema.members).order_by(schema.members.c.member)).all()
        return tuple(
            Team(name=name, members={row.member: row.scope for row in rows if row.team == name}) for name in names
        )

    def make_token(self, team: str, scope: Scope, *, life: float) -> tuple[Token, str]:
        """Makes a token for `life` seconds; the text can be seen now and never again.

        Raises:
            RegistryError: there is no such team.
        """
        text, now = _TOKEN_PREFIX + secrets.token_urlsafe(32), self._clock()
        token = Token(id=secrets.token_hex(4), team=team, scope=scope, made=now, expires=now + life, revoked=None)
        with self._database.writing() as connection:
            self._need_team(connection, team)
            connection.execute(
                sa.insert(schema.tokens).values(
                    id=token.id, digest=_digest(text), team=team, scope=scope, made=now, expires=token.expires
                )
            )
            what = f"{scope}, {life / 86_400:.3g} days"
            record(connection, at=now, who=OPERATOR, what="token", subject=f"{team} token:{token.id}", detail=what)
        return token, text

    def revoke_token(self, token: str) -> None:
        """Ends a token by its id; raises RegistryError where there is none that counts."""
        table = schema.tokens
        with self._database.writing() as connection:
            ended = connection.execute(
                sa.update(table).where(table.c.id == token, table.c.revoked.is_(None)).values(revoked=self._clock())
            )
            if not ended.rowcount:
                raise RegistryError(
                    f"no token {token} counts here", hint="nf-server registry token --list shows which do"
                )
            record(connection, at=self._clock(), who=OPERATOR, what="token revoke", subject=f"token:{token}")

    def tokens(self) -> tuple[Token, ...]:
        """Every token, the oldest first."""
        table = schema.tokens.c
        query = sa.select(table.id, table.team, table.scope, table.made, table.expires, table.revoked)
        with self._database.reading() as connection:
            return tuple(Token(**row._mapping) for row in connection.execute(query.order_by(table.made, table.id)))

    def by_token(self, text: str) -> Caller | None:
        """Whose token this is; None where it is unknown, expired or revoked."""
        table = schema.tokens.c
        # By its digest: how long the look-up takes says nothing of any other token.
        query = sa.select(table.id, table.team, table.scope).where(
            table.digest == _digest(text), table.revoked.is_(None), table.expires > self._clock()
        )
        if len(text) > MAX_TOKEN_CHARACTERS:
            return None
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Caller(name=f"token:{row.id}", teams={row.team: row.scope})

    def by_member(self, member: str) -> Caller:
        """A node of the federation, with what it may do here."""
        table = schema.members.c
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(table.team, table.scope).where(table.member == member)).all()
        return Caller(name=f"member:{member}", teams={row.team: row.scope for row in rows})

    def note(self, what: str, subject: str, detail: str) -> None:
        """Puts into the audit log what the operator did beside the database."""
        with self._database.writing() as connection:
            record(connection, at=self._clock(), who=OPERATOR, what=what, subject=subject, detail=detail)

    def _need_team(self, connection: Connection, team: str) -> None:
        if not self._is_team(connection, team):
            raise RegistryError(f"there is no team {team}", hint=f"nf-server registry team add {team}")

    @staticmethod
    def _is_team(connection: Connection, team: str) -> bool:
        return connection.scalar(sa.select(schema.teams.c.name).where(schema.teams.c.name == team)) is not None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
