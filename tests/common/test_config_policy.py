"""A site's policy: the file alone counts, what it does not say is not limited, and a slip is never read as consent."""

from datetime import time
from pathlib import Path

import pytest
import yaml
from config_documents import faults_of

from neuralforge_common.config.policy import POLICY, AllowSection, SitePolicy, load_site_policy
from neuralforge_common.config.resolve import resolve
from neuralforge_common.errors import ConfigError

OURS = Path(__file__).parents[2] / "configs" / "site_policy.yaml"


def test_our_own_example_loads_and_says_every_key() -> None:
    policy = load_site_policy(OURS)
    assert policy.allow.bases == ("smollm2-135m", "qwen2.5-coder-0.5b")
    assert (policy.allow.max_rank, policy.allow.max_steps, policy.allow.max_rounds) == (32, 200, None)
    written = yaml.safe_load(OURS.read_text())
    assert tuple(f"{section}.{name}" for section, entries in written.items() for name in entries) == POLICY.keys


def test_an_empty_policy_limits_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    policy = load_site_policy(tmp_path / "p.yaml")
    assert policy == SitePolicy()
    assert policy.allow == AllowSection(
        bases=(), max_rank=None, max_steps=None, max_epochs=None, max_rounds=None, hours=None, report_metrics=True
    )
    assert policy.allow.window is None
    assert not policy.require.privacy


def test_the_environment_cannot_widen_a_policy(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("allow:\n  max_rank: 4\n")
    environ = {"NF_ALLOW_MAX_RANK": "64", "ALLOW_MAX_RANK": "64", "NoneALLOW_MAX_RANK": "64"}
    resolved = resolve(POLICY, tmp_path / "p.yaml", {}, environ)
    assert resolved.config.allow.max_rank == 4


def test_a_policy_that_cannot_be_read_is_a_fault_and_no_empty_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load_site_policy(tmp_path / "nope.yaml")


def test_a_misspelt_limit_is_a_fault(tmp_path: Path) -> None:
    assert faults_of(POLICY, tmp_path, "allow:\n  max_rnak: 4\nmax_steps: 3\nrequires:\n  privacy: true\n") == (
        "c.yaml:2: allow.max_rnak: unknown key, did you mean 'max_rank'?",
        "c.yaml:3: max_steps: unknown section, did you mean 'allow.max_steps'?",
        "c.yaml:4: requires: unknown section, did you mean 'require'?",
    )
    assert faults_of(POLICY, tmp_path, "- allow\n") == ("c.yaml:1: wanted sections such as 'allow:', got a list",)


@pytest.mark.parametrize(
    ("written", "begin", "end"),
    [
        ("22:00-06:00", time(22), time(6)),
        ("'00:00-23:59'", time(0), time(23, 59)),
        ("09:30-17:05", time(9, 30), time(17, 5)),
    ],
)
def test_hours_are_two_times_of_day(tmp_path: Path, written: str, begin: time, end: time) -> None:
    (tmp_path / "p.yaml").write_text(f"allow:\n  hours: {written}\n")
    assert load_site_policy(tmp_path / "p.yaml").allow.window == (begin, end)


@pytest.mark.parametrize(
    "hours", ["22:00", "22:00-24:00", "7:00-9:00", "22:00-22:00", "22:60-06:00", "22:00 - 06:00", "night", "22h-6h"]
)
def test_what_is_no_span_of_the_day_is_refused(tmp_path: Path, hours: str) -> None:
    assert faults_of(POLICY, tmp_path, f"allow:\n  hours: '{hours}'\n") == (
        f"c.yaml:2: allow.hours: wanted two different times of day such as 22:00-06:00, got '{hours}'",
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("max_rank: 0", "max_rank: wanted a whole number from 1 to 256, got 0"),
        ("max_rank: 257", "max_rank: wanted a whole number from 1 to 256, got 257"),
        ("max_steps: 0", "max_steps: wanted a whole number ≥ 1, got 0"),
        ("max_epochs: 0.5", "max_epochs: wanted a whole number ≥ 1, got 0.5"),
        ("max_rounds: -1", "max_rounds: wanted a whole number ≥ 1, got -1"),
        ("bases:", "bases: wanted a list of texts, got nothing"),
        ("report_metrics: sometimes", "report_metrics: wanted true or false, got 'sometimes'"),
    ],
)
def test_a_limit_out_of_bounds_is_told_what_was_wanted(tmp_path: Path, line: str, fault: str) -> None:
    assert faults_of(POLICY, tmp_path, f"allow:\n  {line}\n") == (f"c.yaml:2: allow.{fault}",)
