"""The generated code is what protos/ describe."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate_protos.py"


def test_the_committed_code_is_what_the_protos_describe() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_check_notices_a_change(tmp_path: Path) -> None:
    root = SCRIPT.parents[1]
    for folder in ("scripts", "protos", "common/neuralforge_common/protocol"):
        for path in (root / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".pyi", ".proto"):
                copy = tmp_path / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    script = [sys.executable, str(tmp_path / "scripts" / SCRIPT.name)]
    proto = next((tmp_path / "protos").rglob("enrolment.proto"))
    proto.write_text(proto.read_text().replace("string token = 1;", "string token = 9;"))
    stray = tmp_path / "common" / "neuralforge_common" / "protocol" / "gone_pb2.py"
    stray.write_text("")
    done = subprocess.run([*script, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "protocol/enrolment_pb2.py is not what protos/ describe" in done.stdout
    assert "gone_pb2.py" in done.stdout
    assert stray.exists()
    subprocess.run(script, check=True, capture_output=True)
    assert not stray.exists()
    assert subprocess.run([*script, "--check"], capture_output=True).returncode == 0
