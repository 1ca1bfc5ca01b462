"""A PostgreSQL of the distribution's packages on a socket in a folder of its own; skipped where there is none."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa


def fresh_database(url: str) -> str:
    """The URL of a database of that server in which nothing is."""
    name = f"t{secrets.token_hex(6)}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


@contextmanager
def postgres() -> Iterator[str]:
    """Gives the URL of a fresh server's database; the server ends with the block."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(places[-1]) if places else shutil.which("initdb")
    if initdb is None:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    owner: dict[str, object] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            import pwd

            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # Short, as the path of a socket must be, and not pytest's, which its own user cannot enter.
    place = Path(tempfile.mkdtemp(prefix="nfpg"))
    try:
        if owner:
            os.chown(place, account.pw_uid, account.pw_gid)
        data = place / "data"

        def run(program: str, *arguments: str) -> None:
            command = [str(Path(initdb).with_name(program)), *arguments]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, **owner)
            assert done.returncode == 0, done.stderr

        run("initdb", "-D", str(data), "-U", "nf", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={place} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(place / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://nf@/postgres?host={place}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)
