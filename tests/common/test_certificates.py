"""Certificates: who signs what, for how long, and that no kind can be used as another (the handshakes say so)."""

import datetime
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from neuralforge_common.certificates import (
    Authority,
    certificate_hosts,
    certificate_pem,
    create_authority,
    create_request,
    create_server_certificate,
    fingerprint,
    is_issued_by,
    issue_node_certificate,
    openssh_public_key,
    private_pem,
    read_private_key,
    read_request,
)
from neuralforge_common.errors import FederationError, StorageError

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOSTS = ("build-box", "localhost", "127.0.0.1", "2001:db8::7")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority(NOW)


def test_an_authority_lasts_ten_years_and_signs_no_further_authority(authority: Authority) -> None:
    certificate = authority.certificate
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    assert certificate.not_valid_after_utc - NOW == datetime.timedelta(days=3650)
    assert isinstance(authority.key.curve, ec.SECP384R1)
    assert is_issued_by(certificate, certificate)
    assert len(fingerprint(certificate)) == 64
    assert create_authority(NOW).certificate.subject != certificate.subject


def test_a_server_certificate_names_every_host_in_order_and_lasts_a_year(authority: Authority) -> None:
    certificate, key = create_server_certificate(authority, HOSTS, NOW)
    assert certificate_hosts(certificate) == HOSTS
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(host) for host in HOSTS[2:]]
    assert certificate.not_valid_after_utc - NOW == datetime.timedelta(days=365)
    assert isinstance(key.curve, ec.SECP256R1)
    assert is_issued_by(certificate, authority.certificate)
    assert not is_issued_by(certificate, create_authority(NOW).certificate)


def test_no_certificate_outlasts_its_authority(authority: Authority) -> None:
    late = authority.certificate.not_valid_after_utc - datetime.timedelta(days=10)
    certificate, _ = create_server_certificate(authority, HOSTS, late)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_a_request_proves_that_the_key_is_held_and_the_certificate_is_for_that_key(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    asked = read_request(create_request(key))
    assert asked == key.public_key()
    certificate = issue_node_certificate(authority, asked, "laptop-7", 2**150 + 7, NOW)
    assert certificate.public_key() == key.public_key()
    assert certificate.serial_number == 2**150 + 7
    assert certificate.subject.rfc4514_string() == "CN=laptop-7"


def _tampered() -> bytes:
    # The public key of another pair in a request that the first one signed.
    ours, theirs = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    der = x509.load_pem_x509_csr(create_request(ours)).public_bytes(Encoding.DER)
    points = [key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (ours, theirs)]
    assert points[0] in der
    return x509.load_der_x509_csr(der.replace(*points)).public_bytes(Encoding.PEM)


def _by(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: b"", "the signing request cannot be read"),
        (lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n!\n", "the signing request cannot be read"),
        (lambda: _by(ec.generate_private_key(ec.SECP256R1())), "wanted one on P-384 (secp384r1), got secp256r1"),
        (lambda: _by(ec.generate_private_key(ec.BrainpoolP384R1())), "(secp384r1), got brainpoolP384r1"),
        (lambda: _by(rsa.generate_private_key(65537, 2048)), "wanted one on P-384 (secp384r1), got RSAPublicKey"),
        (lambda: _by(ed25519.Ed25519PrivateKey.generate()), "wanted one on P-384 (secp384r1), got Ed25519PublicKey"),
        (_tampered, "the signing request was not signed by the key that it names"),
    ],
)
def test_a_request_of_another_kind_or_by_another_key_is_refused(make, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FederationError) as refusal:
        read_request(make())
    assert line in refusal.value.message


def test_keys_come_back_from_both_formats_and_a_public_key_is_a_line_that_flower_reads() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    for openssh in (False, True):
        assert (
            read_private_key(private_pem(key, openssh=openssh), "node.key").private_numbers() == key.private_numbers()
        )
    line = openssh_public_key(key.public_key())
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert load_ssh_public_key(line.encode()) == key.public_key()


@pytest.mark.parametrize("damage", [lambda pem: b"", lambda pem: pem[:60], lambda pem: pem.replace(b"A", b"!")])
def test_a_damaged_key_file_is_named(damage) -> None:  # type: ignore[no-untyped-def]
    pem = private_pem(ec.generate_private_key(ec.SECP384R1()), openssh=True)
    with pytest.raises(StorageError, match=r"place/node\.key: it holds no private key"):
        read_private_key(damage(pem), "place/node.key")


def test_a_node_cannot_play_the_server_and_the_server_no_node(authority: Authority, tmp_path: Path) -> None:
    node_key = ec.generate_private_key(ec.SECP384R1())
    # Even one that is called as the server is.
    node = issue_node_certificate(authority, node_key.public_key(), "localhost", 5, NOW)
    server, server_key = create_server_certificate(authority, ("localhost",), NOW)
    (tmp_path / "ca.pem").write_bytes(certificate_pem(authority.certificate))
    files = {}
    for name, certificate, key in (("node", node, node_key), ("server", server, server_key)):
        files[name] = tmp_path / f"{name}.pem"
        files[name].write_bytes(certificate_pem(certificate) + private_pem(key))

    assert _handshake(tmp_path / "ca.pem", serves=files["server"], calls=files["node"]) == "welcome"
    assert "certificate purpose" in _handshake(tmp_path / "ca.pem", serves=files["node"], calls=files["node"])
    assert "welcome" not in _handshake(tmp_path / "ca.pem", serves=files["server"], calls=files["server"])


def _handshake(ca: Path, *, serves: Path, calls: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serves)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(calls)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(10)

    def serve() -> None:
        try:
            with context.wrap_socket(theirs, server_side=True) as stream:
                stream.sendall(b"welcome")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname="localhost") as stream:
            return stream.recv(100).decode()
    except OSError as error:
        return str(error)
    finally:
        ours.close()
        thread.join()
