"""publish, search, pull and yank as people run them, against a registry that runs as people run it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from counting_proxy import counting_proxy, wait_for_part
from registry_rig import MALLORY, files_of, make_adapter

from neuralforge.cli.main import main
from neuralforge_common.folder import Evaluation, Scores, read_adapter_folder, write_adapter_folder
from neuralforge_common.signing.keys import SigningKey, decode_signing_key
from neuralforge_common.signing.sign import sign_adapter

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
Captured = pytest.CaptureFixture[str]

LOOPBACK_UP = """
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
"""

WORSE = Evaluation(base=Scores(perplexity=3.0), adapter=Scores(perplexity=6.0), samples=40)
SERVER = Path(sys.executable).with_name("nf-server")


@dataclass
class Served:
    """`nf-server registry start` on loopback."""

    place: Path
    ports: tuple[int, int] = (0, 0)
    fingerprint: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(SERVER, "registry", "start", "--listen", "127.0.0.1"),
                *("--port", str(self.ports[0]), "--member-port", str(self.ports[1])),
            ],
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if found := re.search(r"registry team at nf://[^:]+:(\d+)#sha256:([0-9a-f]{64})", line):
                self.ports, self.fingerprint = (int(found[1]), self.ports[1]), found[2]
                return
        raise AssertionError(said)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate(timeout=30)
            self.process = None

    def operate(self, *words: str) -> str:
        done = subprocess.run([SERVER, "registry", *words], cwd=self.place, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def address(self, port: int | None = None) -> str:
        return f"nf://127.0.0.1:{port or self.ports[0]}#sha256:{self.fingerprint}"

    def token(self, scope: str) -> str:
        return self.operate("token", "--team", "my-company", "--scope", scope).split()[-1]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("registry"))
    served.start()
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def alice(registry: Served, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who signs and publishes for my-company."""
    home = tmp_path_factory.mktemp("alice") / "home"
    environment = {"NEURALFORGE_HOME": str(home)}
    assert cli("keygen", "--no-passphrase", cwd=home.parent, **environment).returncode == 0
    registry.operate("team", "add", "my-company", "--signer", f"{home}/private.pub", "--signer-name", "alice")
    token = home / "token"
    token.write_text(registry.token("publish") + "\n")
    token.chmod(0o600)
    done = cli("adapters", "login", registry.address(), "--token-file", token, cwd=home, **environment)
    assert done.returncode == 0, done.stderr
    assert "team         my-company, publish" in done.stdout
    return environment


@pytest.fixture(scope="module")
def token(registry: Served, alice: dict[str, str]) -> str:
    return registry.token("read")


@pytest.fixture
def bob(cli: Cli, token: str, alice: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who believes what alice signs."""
    environment = {"NEURALFORGE_HOME": str(tmp_path / "bob"), "NEURALFORGE_REGISTRY_TOKEN": token}
    believe = (
        "trust",
        "add",
        Path(alice["NEURALFORGE_HOME"]) / "private.pub",
        "--name",
        "alice",
        "--team",
        "my-company",
    )
    assert cli(*believe, cwd=tmp_path, **environment).returncode == 0
    return environment


def ready(place: Path, who: dict[str, str], **fields: object) -> Path:
    """An adapter that somebody has signed."""
    return make_adapter(place, key=key_of(who), **fields)


def key_of(who: dict[str, str]) -> SigningKey:
    path = Path(who["NEURALFORGE_HOME"]) / "private.key"
    return decode_signing_key(path.read_bytes(), str(path))


def ready_large(place: Path, who: dict[str, str], **fields: object) -> Path:
    """One with a file of 4 MB that nothing can compress."""
    made = read_adapter_folder(make_adapter(place, key=None, **fields))
    tokens = json.dumps({"noise": random.Random(1).randbytes(2_000_000).hex()}).encode()
    write_adapter_folder(place, spec=made.spec, state=made.state, metadata=made.metadata, tokenizer_json=tokens)
    sign_adapter(place, key_of(who))
    return place


def test_one_publishes_and_another_finds_pulls_and_verifies(
    registry: Served, cli: Cli, refused: Refused, alice: dict[str, str], bob: dict[str, str], tmp_path: Path
) -> None:
    made = ready(tmp_path / "made.lora", alice, name="spring-boot-expert", version="1.2.0")
    done = cli("publish", "--adapter", made, "--public", "--tags", "spring,Java, microservices", cwd=tmp_path, **alice)
    assert done.returncode == 0, done.stderr
    assert "published my-company/spring-boot-expert@1.2.0, seen by everybody" in done.stdout
    # Whoever gives the whole address needs no login before.
    there = "--registry", registry.address()
    found = cli("adapters", "search", "spring", "--language", "java", "--json", *there, cwd=tmp_path, **bob)
    (fact,) = json.loads(found.stdout)
    assert (fact["name"], fact["tags"]) == ("spring-boot-expert", ["java", "microservices", "spring"])
    assert "nothing found" in cli("adapters", "search", "--tag", "go", cwd=tmp_path, **bob).stdout
    assert "nf-tiny" in cli("adapters", "search", "--base", "nf-tiny", cwd=tmp_path, **bob).stdout
    done = cli("adapters", "pull", "my-company/spring-boot-expert", cwd=tmp_path, **bob)
    assert done.returncode == 0, done.stderr
    assert "9 steps, all verified" in done.stdout
    assert files_of(tmp_path / "spring-boot-expert.lora") == files_of(made)
    verify = ("adapters", "verify", "spring-boot-expert.lora", "--team", "my-company")
    assert "signed by alice" in cli(*verify, cwd=tmp_path, **bob).stdout
    # Yanked: found by its number alone, and with a warning.
    gone = "my-company/spring-boot-expert@1.2.0"
    assert cli("adapters", "yank", gone, "--reason", "wrong data", cwd=tmp_path, **alice).returncode == 0
    assert "nothing found" in cli("adapters", "search", "spring-boot-expert", cwd=tmp_path, **bob).stdout
    line = refused("adapters", "pull", "my-company/spring-boot-expert", "-o", "again.lora", cwd=tmp_path, **bob)
    assert "step 5 of 9, entry" in line
    done = cli("adapters", "pull", gone, "-o", "again.lora", cwd=tmp_path, **bob)
    assert "warning: this version was yanked: wrong data" in done.stdout


def test_what_is_private_is_for_another_team_what_is_not_there(
    registry: Served, cli: Cli, refused: Refused, alice: dict[str, str], tmp_path: Path
) -> None:
    made = ready(tmp_path / "made.lora", alice, name="secret")
    assert cli("publish", "--adapter", made, "--private", cwd=tmp_path, **alice).returncode == 0
    registry.operate("team", "add", "others")
    token = registry.operate("token", "--team", "others", "--scope", "admin").split()[-1]
    eve = {"NEURALFORGE_HOME": str(tmp_path / "eve"), "NEURALFORGE_REGISTRY_TOKEN": token}
    done = cli("adapters", "login", registry.address(), cwd=tmp_path, **eve)
    assert "team         others, admin" in done.stdout
    assert "nothing found" in cli("adapters", "search", "secret", cwd=tmp_path, **eve).stdout
    for words in (
        ("adapters", "pull", "my-company/{}"),
        ("adapters", "pull", "my-company/{}@1.0.0"),
        ("adapters", "yank", "my-company/{}@1.0.0", "--reason", "x"),
    ):
        there, absent = (
            refused(*(word.format(name) for word in words), cwd=tmp_path, **eve) for name in ("secret", "nothing")
        )
        assert there.replace("secret", "nothing") == absent
    assert "secret" in cli("adapters", "search", "secret", cwd=tmp_path, **alice).stdout


def test_what_may_not_be_published_is_refused_before_anybody_is_called(
    refused: Refused, alice: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    # A home that knows no registry: whoever got that far would say so.
    home = tmp_path / "home"
    shutil.copytree(alice["NEURALFORGE_HOME"], home, ignore=shutil.ignore_patterns("registries"))
    monkeypatch.setenv("NEURALFORGE_HOME", str(home))
    worse = ready(tmp_path / "worse.lora", alice, evaluation=WORSE)
    publish = "publish", "--team", "my-company", "--private", "--adapter"
    line = refused(*publish, worse, cwd=tmp_path, NEURALFORGE_HOME=str(home))
    assert "does not beat its base: perplexity 6, the base's is 3" in line

    def said(folder: Path, *options: str) -> str:
        assert main([*publish, str(folder), *options]) == 1
        return capsys.readouterr().err

    assert "is not signed" in said(make_adapter(tmp_path / "unsigned.lora", key=None))
    unmeasured = ready(tmp_path / "unmeasured.lora", alice, evaluation=None)
    for options in ((), ("--allow-worse",)):
        assert "was not evaluated" in said(unmeasured, *options)
    changed = ready(tmp_path / "changed.lora", alice)
    (changed / "README.md").write_text("other")
    assert "'README.md' was changed after it was signed" in said(changed)
    stranger = make_adapter(tmp_path / "stranger.lora", key=MALLORY)
    assert "step 2 of 6, signer" in said(stranger)
    assert "knows no registry" in said(ready(tmp_path / "sound.lora", alice))


def test_one_that_does_not_beat_its_base_says_so_itself(
    cli: Cli, alice: dict[str, str], bob: dict[str, str], registry: Served, tmp_path: Path
) -> None:
    made = ready(tmp_path / "worse.lora", alice, name="worse", evaluation=WORSE)
    weights = (made / "lora_weights.bin").read_bytes()
    options = "--team", "my-company", "--private", "--allow-worse"
    done = cli("publish", "--adapter", made, *options, cwd=tmp_path, **alice)
    assert done.returncode == 0, done.stderr
    assert "now says that it does not beat its base; signed again by sha256:" in done.stdout
    assert json.loads((made / "metadata.json").read_text())["allow_worse"] is True
    assert (made / "lora_weights.bin").read_bytes() == weights
    done = cli("adapters", "pull", "my-company/worse", "--registry", registry.address(), cwd=tmp_path / "bob", **bob)
    assert done.returncode == 0, done.stderr
    assert "note: it was published although it does not beat its base" in done.stdout


@pytest.mark.slow
def test_a_killed_upload_and_a_killed_pull_go_on(
    program: Path, cli: Cli, alice: dict[str, str], bob: dict[str, str], registry: Served, tmp_path: Path
) -> None:
    made = ready_large(tmp_path / "large.lora", alice, name="large")
    publishing = registry.token("publish")
    publish = "publish", "--adapter", made, "--public"
    pull = "adapters", "pull", "my-company/large", "-o", "pulled.lora"
    with counting_proxy(registry.ports[0]) as proxy:
        there = "--registry", registry.address(proxy.port)

        def killed_on_the_way(*words: object, place: Path, environment: dict[str, str], **limits: int) -> None:
            proxy.reset(**limits)
            process = subprocess.Popen(
                [str(program), *map(str, words), *there], cwd=tmp_path, env=os.environ | environment
            )
            try:
                assert proxy.reached.wait(60)
                wait_for_part(place, 2_000_000)
            finally:
                process.kill()
                process.wait()
            proxy.cut_all()
            proxy.reset()

        who = alice | {"NEURALFORGE_REGISTRY_TOKEN": publishing}
        killed_on_the_way(*publish, place=registry.place, environment=who, up=2_500_000)
        assert "nothing found" in cli("adapters", "search", "large", *there, cwd=tmp_path, **bob).stdout
        proxy.reset()
        done = cli(*publish, *there, cwd=tmp_path, **who)
        assert done.returncode == 0, done.stderr
        assert proxy.up < 3_000_000
        killed_on_the_way(*pull, place=Path(bob["NEURALFORGE_HOME"]), environment=bob, down=2_500_000)
        assert not (tmp_path / "pulled.lora").exists()
        done = cli(*pull, *there, cwd=tmp_path, **bob)
        assert done.returncode == 0, done.stderr
        assert proxy.down < 3_000_000
    assert files_of(tmp_path / "pulled.lora") == files_of(made)


@pytest.mark.slow
def test_an_older_copy_of_the_registry_is_noticed(
    cli: Cli, refused: Refused, alice: dict[str, str], bob: dict[str, str], registry: Served, tmp_path: Path
) -> None:
    first = ready(tmp_path / "first.lora", alice, name="kept")
    there = "--registry", registry.address()
    publish = "publish", "--public", *there, "--adapter"
    assert cli(*publish, first, cwd=tmp_path, **alice).returncode == 0
    registry.stop()
    shutil.copytree(registry.place / "nf-server", tmp_path / "backup")
    registry.start()
    second = ready(tmp_path / "second.lora", alice, name="kept", version="1.0.1")
    assert cli(*publish, second, cwd=tmp_path, **alice).returncode == 0
    assert cli("adapters", "pull", "my-company/kept", *there, cwd=tmp_path, **bob).returncode == 0
    registry.stop()
    shutil.rmtree(registry.place / "nf-server")
    shutil.copytree(tmp_path / "backup", registry.place / "nf-server")
    registry.start()
    line = refused("adapters", "pull", "my-company/kept", "-o", "b.lora", cwd=tmp_path, **bob)
    assert "step 4 of 9, history: my-company/kept@1.0.1 was seen before and is gone" in line
    assert not (tmp_path / "b.lora").exists()
    # Whoever runs it says that a backup was restored: then, and only then, it counts.
    assert cli("adapters", "login", registry.address(), "--anew", cwd=tmp_path, **bob).returncode == 0
    assert cli("adapters", "pull", "my-company/kept", "-o", "b.lora", cwd=tmp_path, **bob).returncode == 0


@pytest.mark.slow
def test_what_calls_nobody_works_without_a_network(program: Path, adapter: Path, tmp_path: Path) -> None:
    isolated = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no network namespaces")
    for name in ("one", "two"):
        make_adapter(tmp_path / f"{name}.lora", key=None, name=name)
    shutil.copytree(adapter, tmp_path / "team.lora")
    script = f"""
        set -e
        nf() {{ '{program}' "$@"; }}
        nf keygen --no-passphrase
        nf sign-adapter one.lora
        nf trust add home/private.pub --name me --team my-company
        nf adapters verify one.lora
        nf adapters list
        nf adapters show one.lora
        nf adapters compose one.lora two.lora --weights 0.5,0.5 --method cat -o both.lora
        nf adapters export one.lora --to peft -o peft
        nf adapters export team.lora --to merged -o merged
        nf lsp --adapter team.lora < /dev/null
        '{sys.executable}' -c '{LOOPBACK_UP}'
        '{program}' --adapter team.lora --port 0 > served &
        until grep 'on nf-tiny at http' served; do sleep 0.2; kill -0 $!; done
        nf adapters load team.lora
        kill $!
        ! nf publish --adapter one.lora --public --registry nf://127.0.0.1:9#sha256:{"0" * 64}
    """
    done = subprocess.run(
        [*isolated, "sh", "-c", script],
        **{"cwd": tmp_path, "env": os.environ | {"NEURALFORGE_HOME": str(tmp_path / "home")}},
        **{"capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error: cannot reach the server" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("adapters", "search"), 1, "this machine knows no registry"),
        (("adapters", "search", "--registry", "nf://127.0.0.1:9"), 1, "does not know the registry at 127.0.0.1:9"),
        (("adapters", "login", "nf://127.0.0.1:9"), 2, "has no fingerprint"),
        (("adapters", "login", "https://127.0.0.1"), 2, "wanted nf://host:port"),
        (("adapters", "pull", "spring"), 1, "wanted team/name or team/name@1.2.0"),
        (("adapters", "pull", "a/../../b"), 1, "name: wanted"),
        (("adapters", "pull", "a/b@latest"), 1, "wanted a semantic version"),
        (("adapters", "yank", "a/b", "--reason", "x"), 2, "which version of a/b?"),
        (("publish", "--adapter", "nowhere.lora"), 2, "--public --private --only-me is required"),
        (("publish", "--adapter", "nowhere.lora", "--public"), 1, "nowhere.lora: cannot read metadata.json"),
        (("publish", "--adapter", "nowhere.lora", "--public", "--tags", "a b"), 1, "tags: wanted"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    words: tuple[str, ...],
    status: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.setenv("NEURALFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(words)
    except SystemExit as error:
        ended = int(error.code or 0)
    assert ended == status
    assert line in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
