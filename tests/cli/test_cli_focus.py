"""`training.focus_on` and `dataset.features`: the guide's files train, what is found is told, and shares move."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]

CONFIGS = Path(__file__).parents[2] / "configs"

NOUNS = ("User", "Order", "Invoice", "Parcel", "Ticket", "Branch", "Driver", "Route")

CONTROLLER = """package org.example;

@RestController
@RequestMapping("/{lower}s")
public class {noun}Controller {{
    @Autowired
    private {noun}Repository {lower}Repository;

    @GetMapping("/{{id}}")
    public {noun} find{noun}(@PathVariable Long id) {{
        return {lower}Repository.findById(id).orElseThrow();
    }}
}}
"""
SERVICE = """package org.example;

public class {noun}Service {{
    private int {lower}Count = {number};

    public int next{noun}() {{
        {lower}Count += {number};
        return {lower}Count * {number} - 1;
    }}

    public String describe{noun}(String name) {{
        String text = name + {number} + "{lower}";
        return text.trim() + text.length();
    }}
}}
"""
CRATE = """pub struct {noun} {{
    pub {lower}: Vec<u8>,
}}

impl From<Vec<u8>> for {noun} {{
    fn from({lower}: Vec<u8>) -> Self {{
        {noun} {{ {lower} }}
    }}
}}

pub fn read_{lower}(path: &str) -> Result<{noun}, std::io::Error> {{
    let bytes = std::fs::read(path)?;
    Ok({noun}::from(bytes))
}}

pub fn count_{lower}(first: u64, second: u64) -> u64 {{
    let {lower}_sum = first * {number} + second;
    {lower}_sum / {number}
}}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the guide's files name, filled, and those files."""
    place = tmp_path_factory.mktemp("focus")
    for folder in ("spring-boot-samples", "company-microservices", "crate"):
        (place / folder).mkdir()
    for number, noun in enumerate(NOUNS):
        values = {"noun": noun, "lower": noun.lower(), "number": number + 3}
        (place / "spring-boot-samples" / f"{noun}Controller.java").write_text(CONTROLLER.format(**values))
        (place / "company-microservices" / f"{noun}Service.java").write_text(SERVICE.format(**values))
        (place / "crate" / f"{noun.lower()}.rs").write_text(CRATE.format(**values))
    for name in ("spring-boot-adapter.yaml", "rust-adapter.yaml"):
        shutil.copyfile(CONFIGS / name, place / name)
    return place


def _shares(output: str) -> tuple[int, int]:
    """Percent of the examples that are in focus, and of what is learnt."""
    found = re.search(
        r"drawn [\d.]+ times as often as others: (\d+)% of the examples, (\d+)% of what is learnt", output
    )
    assert found, output
    return int(found[1]), int(found[2])


@pytest.mark.parametrize(
    ("config", "options", "names"),
    [
        ("spring-boot-adapter.yaml", (), ("annotations", "dependency_injection", "rest_mappings")),
        (
            "rust-adapter.yaml",
            ("--source", "crate"),
            ("ownership_patterns", "error_handling", "trait_implementations"),
        ),
    ],
)
def test_the_guides_files_train_and_tell_what_they_found(
    cli: Cli, sources: Path, tmp_path: Path, config: str, options: tuple[str, ...], names: tuple[str, ...]
) -> None:
    small = ("--base", "nf-tiny", "--max-length", 96, "--max-steps", 3, "--batch-size", 2, "--output", tmp_path)
    done = cli("train", "--config", config, *options, *small, cwd=sources, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert re.search(rf"\b{name} in \d+", done.stdout), done.stdout
    before, after = _shares(done.stdout)
    assert 0 < before < after < 100
    assert "read and not used" not in done.stdout
    assert list(tmp_path.glob("*.lora/adapter_model.safetensors"))


def test_the_weight_says_how_much_more(cli: Cli, sources: Path) -> None:
    file = sources / "weighed.yaml"
    told = []
    for weight in (1, 9):
        file.write_text(
            f"dataset:\n  sources: [spring-boot-samples, company-microservices]\n"
            f"training:\n  focus_on: [rest_mappings]\n  focus_weight: {weight}\n"
        )
        done = cli("train", "--config", file, "--dry-run", cwd=sources)
        assert done.returncode == 0, done.stderr
        told.append(_shares(done.stdout))
    assert told[0][0] == told[0][1] == told[1][0]
    share = told[1][0] / 100
    assert told[1][1] == pytest.approx(100 * 9 * share / (9 * share + 1 - share), abs=5)


def test_a_name_that_there_is_not_is_told_with_the_nearest(refused: Refused, sources: Path) -> None:
    (sources / "wrong.yaml").write_text("dataset:\n  sources: [crate]\n  features: [eror_handling]\n")
    for more in ((), ("--dry-run",)):
        line = refused("train", "--config", "wrong.yaml", *more, cwd=sources)
        assert line == "no detector is called 'eror_handling', did you mean 'error_handling'?"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--private",), "hidden by less noise than the budget counts"),
        (("--continue-from", "old.lora"), "replay has its own shares"),
        (("--remember",), "weighed without it"),
        (("--server", "nf://localhost:1"), "weigh the same"),
    ],
)
def test_what_a_focus_cannot_go_with_is_refused(cli: Cli, sources: Path, options: tuple[str, ...], why: str) -> None:
    done = cli("train", "--config", "spring-boot-adapter.yaml", *options, cwd=sources)
    assert done.returncode == 1
    assert "training.focus_on" in done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
