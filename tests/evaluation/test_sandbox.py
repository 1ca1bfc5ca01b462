"""Hostile programs in the sandbox, under every set of layers that this machine has."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

import neuralforge
import neuralforge_common
from neuralforge.evaluation import sandbox
from neuralforge.evaluation.confinement import seccomp
from neuralforge.evaluation.sandbox import LAYERS, MIB, Limits, Outcome, confinement, run_confined
from neuralforge_common.errors import SandboxError


def _can(layers: tuple[str, ...]) -> str:
    """Why a set of layers cannot be had here, or nothing."""
    if sys.platform != "linux":
        return "not Linux"
    try:
        run_confined("pass", layers=layers)
    except SandboxError as error:
        return error.message
    return ""


@pytest.fixture(scope="module", params=LAYERS, ids=" and ".join)
def layers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    if why := _can(chosen):
        pytest.skip(why)
    return chosen


QUICK = Limits(wall=10, cpu=5)


def run(program: str, layers: tuple[str, ...], limits: Limits = QUICK) -> Outcome:
    return run_confined(textwrap.dedent(program), limits=limits, layers=layers)


def tried(attempts: dict[str, str], layers: tuple[str, ...]) -> dict[str, str]:
    """Each attempt -> "done", or the exception that it met; one program makes them all."""
    lines = ["import json, os, sys", "told = {}"]
    for name, code in attempts.items():
        lines += ["try:", textwrap.indent(textwrap.dedent(code).strip(), "    ") or "    pass"]
        lines += [f"    told[{name!r}] = 'done'", "except BaseException as error:"]
        lines += [f"    told[{name!r}] = type(error).__name__"]
    outcome = run("\n".join([*lines, "print(json.dumps(told))"]), layers)
    assert outcome.code == 0, outcome
    told: dict[str, str] = json.loads(outcome.stdout)
    return told


def test_this_machine_confines_or_says_why_not() -> None:
    try:
        assert confinement() in LAYERS
    except SandboxError as error:
        pytest.skip(error.message)


def test_an_honest_program_runs_and_sees_nothing_of_its_caller(
    layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    outcome = run(
        """
        import collections, hashlib, itertools, json, math, os, random, re, string, sys
        open("mine.txt", "w").write("x")
        print(open("mine.txt").read(), sorted(os.environ), "site" in sys.modules, sys.stdin.read() == "")
        """,
        layers,
    )
    assert outcome.ended == "exit"
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == "x ['HOME', 'LANG', 'PATH', 'TMPDIR'] False True\n"


def test_a_failing_program_shows_its_error(layers: tuple[str, ...]) -> None:
    outcome = run("assert 1 + 1 == 3, 'sum'", layers)
    assert outcome.code == 1
    assert "AssertionError: sum" in outcome.stderr


def test_nothing_outside_is_read_or_changed(layers: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    key = home / "id_ed25519"
    key.write_text("PRIVATE")
    # Anybody may read and write these: what holds is the sandbox, not their modes.
    for path in (*tmp_path.parents[:2], tmp_path, home.parent, home):
        path.chmod(0o777)
    key.chmod(0o666)
    here, place = repr(str(key)), repr(str(home))
    told = tried(
        {
            "read": f"open({here}).read()",
            "list": f"os.listdir({place})",
            "append": f"open({here}, 'a').write('x')",
            "truncate": f"os.truncate({here}, 0)",
            "open to truncate": f"os.open({here}, os.O_RDONLY | os.O_TRUNC)",
            "create": f"open({place} + '/new', 'w')",
            "remove": f"os.remove({here})",
            "rename": f"os.rename({here}, 'stolen')",
            "rename over": f"open('a', 'w').close(); os.rename('a', {here})",
            "hard link": f"os.link({here}, 'linked'); open('linked').read()",
            "symlink": f"os.symlink({here}, 'soft'); open('soft').read()",
            "symlink to write": f"os.symlink({here}, 'soft2'); open('soft2', 'w').write('x')",
            "symlinked folder": f"os.symlink({place}, 'folder'); open('folder/new', 'w')",
            "upwards": "open('../' * 20 + 'tmp/new', 'w')",
            "mode": f"os.chmod({here}, 0)",
            "owner": f"os.chown({here}, 12345, 12345)",
            "times": f"os.utime({here}, (0, 0))",
            "attribute": f"os.setxattr({here}, 'user.x', b'x')",
            "make a folder": "os.mkdir('sub')",
            "the parent's environment": f"open('/proc/{os.getpid()}/environ').read()",
            "own process": "open('/proc/self/status').read()",
            "descriptors": "os.listdir('/proc/self/fd')",
            "passwords": "open('/etc/passwd').read()",
            "a package of ours": f"open({str(Path(sandbox.__file__))!r}).read()",
        },
        layers,
    )
    assert [name for name, end in told.items() if end == "done"] == []
    assert key.read_text() == "PRIVATE"
    assert key.stat().st_mode & 0o777 == 0o666
    assert [path.name for path in home.iterdir()] == ["id_ed25519"]


def test_there_is_no_network(layers: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        told = tried(
            {
                "loopback": f"import socket; socket.create_connection(('127.0.0.1', {port}), 2).sendall(b'x')",
                "names": "import socket; socket.getaddrinfo('example.org', 80)",
                "datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
                "raw": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
                "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
                "unix": "import socket; socket.socketpair()",
                "listen": "import socket; socket.create_server(('127.0.0.1', 0))",
            },
            layers,
        )
        assert "done" not in told.values()
        with pytest.raises(TimeoutError):
            listener.accept()


def test_no_process_is_made_harmed_or_watched(layers: tuple[str, ...]) -> None:
    victim = os.getpid()
    told = tried(
        {
            "fork": "os.fork()",
            "thread": "import threading; threading.Thread(target=print).start()",
            "program": "import subprocess; subprocess.run(['/bin/true'])",
            "shell": "assert os.system('true') == 0",
            "kill the caller": f"os.kill({victim}, 9)",
            "kill the parent": "os.kill(os.getppid(), 9)",
            "kill the group": "os.kill(0, 9)",
            "kill all": "os.kill(-1, 9)",
            "group of one's own": "os.setsid()",
            "signal by file": """
                import fcntl
                fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())
            """,
            "limits of the caller": f"import resource; resource.prlimit({victim}, resource.RLIMIT_CPU, (1, 1))",
            "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
            "more time": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (600, 600))",
            "become root": "os.setuid(1)",
            "another root": "os.chroot('.')",
            "a device": "os.mknod('d', 0o60600, os.makedev(8, 0))",
            "a fifo": "os.mkfifo('f')",
        },
        layers,
    )
    assert [name for name, end in told.items() if end == "done"] == []


def test_system_calls_without_a_name_in_python_are_refused(layers: tuple[str, ...]) -> None:
    told = tried(
        {
            name: f"""
                import ctypes
                assert ctypes.CDLL(None, use_errno=True).{call} >= 0
            """
            for name, call in {
                "what all may": "getpid()",
                "ptrace": "ptrace(0, 0, 0, 0)",
                "attach": f"ptrace(16, {os.getppid()}, 0, 0)",
                "mount": "mount(b'none', b'/', b'tmpfs', 0, 0)",
                "unshare": "unshare(0x10000000)",
                "keyring": "syscall(250, 0, -3, 1)",
                "memory of others": f"process_vm_readv({os.getpid()}, 0, 0, 0, 0, 0)",
                "io_uring": "syscall(425, 1, 0)",
                "bpf": "syscall(321, 0, 0, 0)",
                "pidfd": f"syscall(434, {os.getpid()}, 0)",
                "anonymous file": "memfd_create(b'x', 0)",
                "the other table": "syscall(0x40000000 + 41, 2, 1, 0)",
            }.items()
        },
        layers,
    )
    assert [name for name, end in told.items() if end == "done"] == ["what all may"]


def test_an_endless_loop_ends(layers: tuple[str, ...]) -> None:
    outcome = run("while True: pass", layers, Limits(wall=30, cpu=1))
    assert outcome.code == 128 + signal.SIGKILL
    assert outcome.seconds < 10


def test_a_sleeper_that_ignores_signals_ends(layers: tuple[str, ...]) -> None:
    program = """
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
        """
    outcome = run(program, layers, Limits(wall=0.8))
    assert outcome.ended == "time"
    assert outcome.seconds < 5


def test_memory_is_bounded(layers: tuple[str, ...]) -> None:
    outcome = run("held = bytearray(1 << 30)", layers)
    assert outcome.code == 1
    assert "MemoryError" in outcome.stderr


def test_a_fork_bomb_makes_nothing(layers: tuple[str, ...]) -> None:
    outcome = run("import os\nwhile True: os.fork()", layers)
    assert outcome.code == 1
    assert "in <module>" in outcome.stderr


def test_a_flood_of_output_ends_it(layers: tuple[str, ...]) -> None:
    for stream in ("stdout", "stderr"):
        outcome = run(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)", layers, Limits(output=1000))
        assert outcome.ended == "output"
        assert len(getattr(outcome, stream)) == 1000


def test_files_and_the_disk_are_bounded(layers: tuple[str, ...]) -> None:
    one = run("open('big', 'wb').write(bytes(5 << 20))", layers)
    assert one.code == 1
    assert "OSError" in one.stderr
    many = run("n = 0\nwhile True:\n    open(str(n), 'wb').write(bytes(1 << 20)); n += 1", layers, Limits(disk=8 * MIB))
    assert many.ended == "disk" or (many.code == 1 and "No space left" in many.stderr)


def test_a_program_that_closes_its_output_is_still_waited_for(layers: tuple[str, ...]) -> None:
    outcome = run("import os, time\nos.close(1); os.close(2); time.sleep(30)", layers, Limits(wall=0.8))
    assert outcome.ended == "time"


def test_nothing_outlives_a_caller_that_is_killed(layers: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
        from neuralforge.evaluation.sandbox import *
        run_confined("import time; time.sleep(40.0625)", limits=Limits(wall=60), layers={layers!r})
    """
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert _until(lambda: len(_below(caller.pid)) >= (3 if "namespaces" in layers else 1))
    time.sleep(0.3)
    family = _below(caller.pid)
    caller.kill()
    caller.wait()
    assert _until(lambda: not [pid for pid in family if _lives(pid)])


def _below(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *_below(child)]
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _until(true: object, seconds: float = 15) -> bool:
    assert callable(true)
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(done)


def test_where_nothing_confines_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for layers in ((), ("nothing",)):
        with pytest.raises(SandboxError, match="does not hold the file system"):
            run_confined(f"open({str(tmp_path / 'ran')!r}, 'w')", layers=layers)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    confinement.cache_clear()
    try:
        with pytest.raises(SandboxError, match="only be confined on Linux"):
            run_confined("pass")
    finally:
        confinement.cache_clear()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_plain_user_is_confined_as_root_is() -> None:
    # What root's tests run with may lie where a plain user cannot read: another interpreter, and a copy of the code.
    python = next((path for path in (sys.executable, "/usr/bin/python3") if _anybody_reads(Path(path))), None)
    if python is None:
        pytest.skip("no interpreter here that a plain user can read")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        for package in (neuralforge, neuralforge_common):
            root = Path(package.__file__ or "").parent
            for path in (root / "__init__.py", root / "errors.py", *(root / "evaluation").glob("**/*.py")):
                if path.exists():
                    copy = Path(place) / root.name / path.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
        code = f"""
            import sys
            sys.path.insert(0, {place!r})
            from neuralforge.evaluation.sandbox import confinement, run_confined
            print(confinement(), run_confined("open('/etc/passwd')").stderr)
        """
        command = [python, "-I", "-S", "-B", "-c", textwrap.dedent(code)]
        done = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
    if "SandboxError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-2])
    assert "landlock" in done.stdout or "namespaces" in done.stdout, done.stderr
    assert re.search("PermissionError|FileNotFoundError", done.stdout)


def _anybody_reads(path: Path) -> bool:
    real = Path(os.path.realpath(path))
    return real.exists() and all(place.stat().st_mode & 0o005 == 0o005 for place in (real, *real.parents))


def test_the_lists_of_system_calls_hold_none_that_reaches_out() -> None:
    out = {"socket", "connect", "clone", "clone3", "fork", "vfork", "ptrace", "mount", "setns", "unshare", "bpf"}
    out |= {"io_uring_setup", "memfd_create", "process_vm_writev", "pidfd_open", "chmod", "fchmodat", "mkdirat"}
    for machine in ("x86_64", "aarch64"):
        names = seccomp.calls(machine)
        assert not out & set(names)
        assert {"read", "write", "openat", "execve", "exit_group", "mmap", "kill"} <= set(names)
        assert len(set(names.values())) == len(names)
        assert len(seccomp.program(machine, 2)) < 4096 * 8
