"""Names, versions and digests of releases: what both sides of a registry must mean alike."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.errors import AdapterError
from neuralforge_common.registry.release import (
    ReleaseFile,
    ReleaseName,
    Version,
    check_adapter_name,
    check_tags,
    check_team,
    release_digest,
)

NEEDED = ("adapter_config.json", "adapter_model.safetensors", "metadata.json", "model.sig")


def file(name: str, sha256: str = "a" * 64, size: int = 1) -> ReleaseFile:
    return ReleaseFile(name=name, sha256=sha256, size=size)


VERSIONS = st.builds(
    "{}.{}.{}{}".format,
    *(st.integers(0, 30) for _ in range(3)),
    st.sampled_from(("", "-a", "-a.1", "-a.b", "-1", "-10", "-2", "-rc.1", "-rc.11", "+build", "-a+b", "--")),
)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_versions_have_one_order(first: str, second: str, third: str) -> None:
    a, b, c = sorted(map(Version, (first, second, third)))
    assert a <= b <= c
    assert a <= c
    assert (a == b) == (a.core == b.core)
    assert (a == b) <= (hash(a) == hash(b))


def test_the_order_is_that_of_semver() -> None:
    # https://semver.org/spec/v2.0.0.html, §11
    told = (
        "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 2.0.0 2.1.0"
    )
    versions = [Version(text) for text in told.split()]
    assert sorted(reversed(versions)) == versions
    assert [version.text for version in versions if version.is_prerelease] == told.split()[:7]


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "v1.0.0", "1.0.0 ", "1.0.0-ä", "9" * 10 + ".0.0"]
)
def test_what_is_no_semantic_version_is_refused(text: str) -> None:
    with pytest.raises(AdapterError, match="wanted a semantic version"):
        Version(text)


def test_a_name_reads_as_it_is_written() -> None:
    for text in ("my-company/spring-boot-expert@1.2.0", "a/b", "a/b.c_d@0.0.1-x.1+y"):
        assert str(ReleaseName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/", "/b", "a/b@", "a/b@latest", "A/b", "a/B", "a/b/c", "../b", "a/..", "a/.b", "a/b\n", "a/b@1.0.0@2"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(AdapterError):
        ReleaseName.parse(text)


def test_the_digest_is_of_every_name_size_and_content_in_any_order() -> None:
    files = [file(name) for name in NEEDED]
    digest = release_digest(files)
    lines = "".join(f"{'a' * 64} 1 {name}\n" for name in NEEDED)
    assert digest == hashlib.sha256(lines.encode()).hexdigest() == release_digest(reversed(files))
    for other in (
        [*files, file("README.md")],
        [*files[:-1], file("model.sig", "b" * 64)],
        [*files[:-1], file("model.sig", size=2)],
    ):
        assert release_digest(other) != digest


def test_a_release_without_its_signature_or_with_a_name_twice_has_no_digest() -> None:
    files = [file(name) for name in NEEDED]
    with pytest.raises(AdapterError, match=r"model\.sig is missing"):
        release_digest(files[:-1])
    with pytest.raises(AdapterError, match="twice"):
        release_digest([*files, files[0]])


@pytest.mark.parametrize(
    "wrong", [{"name": "x.bin"}, {"name": "../a"}, {"sha256": "A" * 64}, {"sha256": "a" * 63}, {"size": -1}]
)
def test_a_file_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AdapterError):
        ReleaseFile(**({"name": "README.md", "sha256": "a" * 64, "size": 0} | wrong))


def test_teams_names_and_tags_are_plain_words() -> None:
    assert check_team("my-company") == "my-company"
    assert check_adapter_name("spring-boot.v2_x") == "spring-boot.v2_x"
    assert check_tags(["c++", "java", "c#", "java"]) == ("c#", "c++", "java")
    for check, wrong in (
        (check_team, ("", "-a", "a" * 64, "a_b", "a/b", "ä")),
        (check_adapter_name, ("", ".a", "a.", "a/b", "a" * 101, "A")),
        (lambda tag: check_tags([tag]), ("", "A", "a b", "-a", "a" * 41, "\u202ea")),
    ):
        for text in wrong:
            with pytest.raises(AdapterError):
                check(text)
    with pytest.raises(AdapterError, match="at most 2"):
        check_tags(["a", "b", "c"], most=2)
