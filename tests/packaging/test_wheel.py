"""The wheel: whole, nothing beside it, and its commands run from a clean environment."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("client", "common", "server", "simulations")
PACKAGES = {"neuralforge", "neuralforge_common", "neuralforge_server", "neuralforge_simulations"}
# So that nothing of this checkout is importable by way of the folder or the environment.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NF_"))}

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=CLEAN | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, cwd=ROOT)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; what it depends on is seen in the place where it already lies."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    python = place / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=place)
    # A line of a .pth file is put on the path without its own .pth files being read: no editable install comes along.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def test_the_wheel_holds_the_packages_the_embedded_base_and_no_test(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    tops = {name.partition("/")[0] for name in sizes}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    for package in PACKAGES:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= sizes.keys()
    base = "neuralforge/models/nf_tiny"
    assert {f"{base}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= sizes.keys()
    assert sum(size for name, size in sizes.items() if name.startswith(base)) < 8_000_000
    strange = [name for name in sizes if re.search(r"tests?/|conftest|__pycache__|\.pyc$|\.ya?ml$|benchmarks", name)]
    assert strange == []
    sources = {path.relative_to(ROOT / top).as_posix() for top in FOLDERS for path in (ROOT / top).rglob("*.py")}
    assert sources <= sizes.keys()
    assert any(name.endswith("licenses/LICENSE") for name in sizes)


def test_its_commands_run_from_a_clean_environment(installed: Path, team_code: Path, tmp_path: Path) -> None:
    binaries = installed / "bin"
    places = "import neuralforge, neuralforge_common; print(neuralforge.__file__, neuralforge_common.__file__)"
    for place in run(binaries / "python", "-c", places, cwd=tmp_path).split():
        assert Path(place).is_relative_to(installed)
    assert re.fullmatch(r"neuralforge \d+\.\d+\S*\n", run(binaries / "neuralforge", "--version", cwd=tmp_path))
    assert "create-dataset" in run(binaries / "nf-client", "--help", cwd=tmp_path)
    assert "invite" in run(binaries / "nf-server", "--help", cwd=tmp_path)
    assert "run" in run(binaries / "nf-sim", "--help", cwd=tmp_path)
    options = ("--base", "nf-tiny", "--max-steps", 2, "--max-samples", 8, "--max-eval-samples", 2, "--max-length", 64)
    output = run(
        *(binaries / "neuralforge", "train", "--source", team_code, *options, "--name", "clean"),
        cwd=tmp_path,
        OMP_NUM_THREADS="1",
    )
    assert "\nsaved clean.lora\n" in output
    assert (tmp_path / "clean.lora" / "lora_weights.bin").is_file()
