"""Addresses of federations: what they say is what was written, and everything else is refused with what was wanted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge_common.address import FederationAddress, canonical_host
from neuralforge_common.errors import UsageError

MARK = "0123456789abcdef" * 4

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join), st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)
)
addresses = st.builds(
    FederationAddress,
    host=hosts,
    port=st.integers(1, 65_535),
    fingerprint=st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@given(addresses)
def test_an_address_that_is_written_and_read_is_the_same(address: FederationAddress) -> None:
    assert FederationAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "host", "port", "fingerprint"),
    [
        (f"nf://build-box:9000#sha256:{MARK}", "build-box", 9000, MARK),
        (f"nf://build-box#sha256:{MARK.upper()}", "build-box", 8470, MARK),
        ("  nf://Build-Box.Example.org.\n", "build-box.example.org", 8470, None),
        ("nf://10.0.0.7:1", "10.0.0.7", 1, None),
        ("nf://[2001:DB8::0:7]", "2001:db8::7", 8470, None),
        ("nf://[::1]:8471", "::1", 8471, None),
    ],
)
def test_port_and_fingerprint_may_be_left_out(text: str, host: str, port: int, fingerprint: str | None) -> None:
    assert FederationAddress.parse(text) == FederationAddress(host=host, port=port, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("build-box:8470", "address: wanted nf://host:port#sha256:…, got 'build-box:8470'"),
        ("https://build-box", "address: wanted nf://host:port#sha256:…, got 'https://build-box'"),
        ("nf://user@build-box", "address: wanted nf://host:port#sha256:…, got 'nf://user@build-box'"),
        ("nf://build-box/path", "address: wanted nf://host:port#sha256:…, got 'nf://build-box/path'"),
        ("nf://::1", "port: wanted a whole number from 1 to 65,535, got ':1'"),
        ("nf://", "host: wanted a DNS name or an IP address, got ''"),
        ("nf://-box", "host: wanted a DNS name or an IP address, got '-box'"),
        ("nf://10.0.0.300", "host: wanted a DNS name or an IP address, got '10.0.0.300'"),
        ("nf://[fe80::1%eth0]", "host: wanted a DNS name or an IP address, got 'fe80::1%eth0'"),
        ("nf://[build-box]", "host: wanted an IPv6 address in the brackets, got 'build-box'"),
        ("nf://build-box:0", "port: wanted a whole number from 1 to 65,535, got 0"),
        ("nf://build-box:65536", "port: wanted a whole number from 1 to 65,535, got 65536"),
        ("nf://build-box:", "port: wanted a whole number from 1 to 65,535, got ''"),
        ("nf://build-box:٨٠", "port: wanted a whole number from 1 to 65,535, got '٨٠'"),
        ("nf://build-box#sha256:abcd", "fingerprint: wanted 64 hex digits, got 4 characters, 'abcd'"),
        ("nf://build-box#md5:abcd", "fingerprint: wanted #sha256:<64 hex digits>, got '#md5:abcd'"),
        (f"nf://build-box#sha256:{MARK}0", "fingerprint: wanted 64 hex digits, got 65 characters, '0123456789abcdef"),
    ],
)
def test_what_is_no_address_is_a_usage_error_that_says_what_was_wanted(text: str, line: str) -> None:
    with pytest.raises(UsageError) as refusal:
        FederationAddress.parse(text)
    assert refusal.value.message.startswith(line)
    assert "\n" not in refusal.value.message
    assert "nf-server init" in refusal.value.hint
    assert refusal.value.exit_code == 2


@given(st.text(max_size=80).map("nf://".__add__))
def test_any_other_text_is_refused_and_never_fails_otherwise(text: str) -> None:
    try:
        address = FederationAddress.parse(text)
    except UsageError:
        return
    assert canonical_host(address.host) == address.host
