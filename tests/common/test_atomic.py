"""A file or a folder is the old one or the new one, whole, whatever happens while it is written."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuralforge_common.atomic import open_atomically, recover_folder, replace_folder, write_bytes_atomically
from neuralforge_common.errors import StorageError

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

# A C library that cannot be opened is one without renameat2: folders are then replaced by two renames.
NO_EXCHANGE = """
import ctypes
def refuse(*arguments, **options):
    raise OSError("no C library")
ctypes.CDLL = refuse
"""

EXCHANGES = pytest.mark.parametrize("prelude", ["", NO_EXCHANGE], ids=["exchange", "two-renames"])


def run_script(script: str, *arguments: object, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = prelude + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_holds_its_bytes_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "deep" / "er" / "file", b"old")
    write_bytes_atomically(tmp_path / "deep" / "er" / "file", b"new")
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"new"
    assert names_in(tmp_path / "deep" / "er") == ["file"]


def test_a_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "secret", b"key", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_an_exception_while_writing_a_file_changes_nothing(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "file", b"old")

    def interrupted() -> None:
        with open_atomically(tmp_path / "file") as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


@EXCHANGES
def test_a_folder_takes_the_place_of_another_with_all_of_its_files(tmp_path: Path, prelude: str) -> None:
    (tmp_path / "x.lora").mkdir()
    (tmp_path / "x.lora" / "old").touch()
    script = """
        import sys
        from pathlib import Path
        from neuralforge_common.atomic import replace_folder
        with replace_folder(Path(sys.argv[1])) as folder:
            (folder / "new").write_text("content")
            (folder / "sub").mkdir()
            (folder / "sub" / "deep").touch()
        """
    assert run_script(script, tmp_path / "x.lora", prelude=prelude).returncode == 0
    assert names_in(tmp_path) == ["x.lora"]
    assert names_in(tmp_path / "x.lora") == ["new", "sub"]


def test_an_exception_while_filling_a_folder_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.lora").mkdir()
    (tmp_path / "x.lora" / "old").touch()

    def interrupted() -> None:
        with replace_folder(tmp_path / "x.lora") as folder:
            (folder / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path) == ["x.lora"]
    assert names_in(tmp_path / "x.lora") == ["old"]


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link"])
def test_neither_a_file_nor_a_link_is_replaced_by_a_folder(tmp_path: Path, kind: str) -> None:
    target, elsewhere = tmp_path / "x.lora", tmp_path / "elsewhere"
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(elsewhere)
        if kind == "link to a folder":
            elsewhere.mkdir()
    before = names_in(tmp_path)
    with pytest.raises(StorageError, match="is in the way"), replace_folder(target):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "a/.."])
def test_a_path_without_a_name_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="names a place"):
        write_bytes_atomically(Path(name), b"")


@EXCHANGES
def test_a_process_killed_at_any_step_leaves_the_old_folder_or_the_new_one_whole(tmp_path: Path, prelude: str) -> None:
    # Python reports each system call that touches a file to its audit hooks: die at the first, the second, …
    script = """
        import os, signal, sys
        from pathlib import Path
        from neuralforge_common.atomic import recover_folder, replace_folder

        target = Path(sys.argv[1])

        def replace(version):
            with replace_folder(target) as folder:
                for name in ("a", "b", "c"):
                    (folder / name).write_text(version * 1000)

        step = 0
        while True:
            replace("old")
            child = os.fork()
            if child == 0:
                count = 0
                def die_at_step(event, arguments):
                    global count
                    if event.startswith(("os.", "open", "shutil.", "fcntl.", "ctypes.")):
                        if count == step:
                            os.kill(os.getpid(), signal.SIGKILL)
                        count += 1
                sys.addaudithook(die_at_step)
                replace("new")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            recover_folder(target)
            contents = {name: (target / name).read_text() for name in ("a", "b", "c")}
            whole = {version for version in ("old", "new") if set(contents.values()) == {version * 1000}}
            print(*whole or ["torn"], len(list(target.iterdir())))
            if status == 0:
                break
            step += 1
        replace("last")
        print("left", sorted(path.name for path in target.parent.iterdir()))
        """
    result = run_script(script, tmp_path / "x.lora", prelude=prelude)
    *outcomes, left = result.stdout.splitlines()
    assert set(outcomes) == {"old 3", "new 3"}, result.stdout + result.stderr
    assert len(outcomes) >= 15
    assert left == "left ['x.lora']"


@EXCHANGES
def test_a_process_killed_at_random_moments_leaves_the_old_folder_or_the_new_one_whole(
    tmp_path: Path, prelude: str
) -> None:
    script = """
        import sys
        from pathlib import Path
        from neuralforge_common.atomic import replace_folder
        target, version = Path(sys.argv[1]), int(sys.argv[2])
        while True:
            version += 1
            with replace_folder(target) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(f"{version}\\n" * 2000)
            print(version, flush=True)
        """
    target, version = tmp_path / "x.lora", 0
    random.seed(20)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", prelude + textwrap.dedent(script), str(target), str(version)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()  # it is under way
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        finished = [int(line) for line in process.stdout.read().split()]
        process.wait()
        recover_folder(target)
        texts = [(target / name).read_text() for name in ("a", "b")]
        found = int(texts[0].split("\n", 1)[0])
        assert texts == [f"{found}\n" * 2000] * 2
        assert found >= max(finished, default=version + 1)
        version = found


def test_a_process_killed_at_random_moments_leaves_the_old_file_or_the_new_one_whole(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from neuralforge_common.atomic import write_bytes_atomically
        version = 0
        while True:
            version += 1
            write_bytes_atomically(Path(sys.argv[1]), str(version % 10).encode() * 300_000)
            print(version, flush=True)
        """
    target = tmp_path / "checkpoint"
    random.seed(21)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(target)], env=ENVIRONMENT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.stdout.close()
        process.wait()
        content = target.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
    write_bytes_atomically(target, b"last")
    assert names_in(tmp_path) == ["checkpoint"]


def test_the_temporary_of_a_living_writer_is_not_cleaned_away(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "x.lora") as first:
        (first / "first").touch()
        with replace_folder(tmp_path / "x.lora") as second:
            (second / "second").touch()
        assert names_in(tmp_path / "x.lora") == ["second"]
    assert names_in(tmp_path / "x.lora") == ["first"]
    assert names_in(tmp_path) == ["x.lora"]


def test_only_leftovers_of_the_same_name_are_cleaned_away(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    kept = [
        f".other.{token}.new",
        f".x.{token}.newer",
        ".x.lora.new",
        f".x.lora.{token}.old.txt",
        f"x.lora.{token}.new",
    ]
    for name in [*kept, f".x.lora.{token}.new"]:
        (tmp_path / name).mkdir()
    with replace_folder(tmp_path / "x.lora"):
        pass
    assert names_in(tmp_path) == sorted([*kept, "x.lora"])


def test_an_old_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".x.lora.0123456789abcdef.old"
    aside.mkdir()
    (aside / "content").touch()
    assert recover_folder(tmp_path / "x.lora")
    assert names_in(tmp_path / "x.lora") == ["content"]
    assert not recover_folder(tmp_path / "x.lora")


@pytest.mark.parametrize("below", ["x", "deep/x"])
def test_a_path_below_a_file_is_a_storage_error_with_a_way_out(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of the path is a file") as caught:
        write_bytes_atomically(tmp_path / "file" / below, b"data")
    assert caught.value.hint
    with pytest.raises(StorageError, match="a part of the path is a file"), replace_folder(tmp_path / "file" / below):
        pytest.fail("the block must not run")


WRITE_BOTH = """
    import sys
    from pathlib import Path
    from neuralforge_common.atomic import replace_folder, write_bytes_atomically
    from neuralforge_common.errors import StorageError
    {prelude}
    target = Path(sys.argv[1])

    def report(write):
        try:
            write()
            print("written")
        except StorageError as error:
            print(error.message.replace(str(target), "TARGET"), "|", bool(error.hint))

    def folder():
        with replace_folder(target / "folder") as temporary:
            (temporary / "weights").write_bytes(bytes(1_000_000))

    report(lambda: write_bytes_atomically(target / "file", bytes(1_000_000)))
    report(folder)
    print(sorted(path.name for path in target.iterdir()), (target / "file").read_text())
    """


def test_a_file_that_outgrows_its_limit_is_a_storage_error_and_the_old_one_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    result = run_script(WRITE_BOTH.format(prelude=limit), tmp_path)
    assert result.stdout.splitlines() == [
        "cannot write TARGET/file: the file is larger than this place allows | True",
        "cannot write TARGET/folder: the file is larger than this place allows | True",
        "['file'] old",
    ], result.stderr


@pytest.mark.parametrize(
    ("options", "reason"), [("size=200k", "the disk is full"), ("size=200k,ro", "the file system is read-only")]
)
def test_a_disk_that_takes_no_more_is_a_storage_error_and_the_old_file_stands(
    tmp_path: Path, options: str, reason: str
) -> None:
    code = textwrap.dedent(WRITE_BOTH.format(prelude=""))
    # In a mount namespace of its own: nothing to clean up. The old file goes in before the disk becomes read-only.
    steps = (
        'mount -t tmpfs -o size=200k tmpfs "$1" && printf old > "$1/file" && mount -o "remount,$2" "$1" && '
        'exec "$3" -c "$4" "$1"'
    )
    command = ["unshare", "-rm", "sh", "-c", steps, "sh", str(tmp_path), options, sys.executable, code]
    probe = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs tmpfs {tmp_path}"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this machine mounts no tmpfs for tests")
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == [
        f"cannot write TARGET/file: {reason} | True",
        f"cannot write TARGET/folder: {reason} | True",
        "['file'] old",
    ], result.stderr


def test_an_error_of_another_file_in_the_block_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replace_folder(tmp_path / "x.lora"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input.jsonl"))
    with pytest.raises(StorageError), replace_folder(tmp_path / "x.lora") as folder:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "weights"))


def test_several_who_put_a_folder_where_there_was_none_all_succeed_and_one_whole_folder_stands(tmp_path: Path) -> None:
    def put(who: int, path: Path, together: threading.Barrier) -> None:
        with replace_folder(path) as unfinished:
            for name in ("a", "b"):
                (unfinished / name).write_text(str(who))
            together.wait(timeout=10)

    for number in range(20):
        path, together = tmp_path / str(number), threading.Barrier(4)
        with ThreadPoolExecutor(4) as writers:
            for done in [writers.submit(put, who, path, together) for who in range(4)]:
                done.result()
        assert len({(path / name).read_text() for name in ("a", "b")}) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(map(str, range(20)))
