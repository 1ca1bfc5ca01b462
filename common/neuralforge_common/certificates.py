"""The X.509 certificates of a federation: one authority, its server, its nodes. All keys are NIST curves.

    authority   P-384, 10 years, path length 0: signs the two below and nothing that could sign in turn
    server      P-256,  1 year, serverAuth, every name and address that clients reach it by
    node        P-384,  1 year, clientAuth, CN = the node's name; its key is Flower's node key, too

The purposes (extended key usage) keep a node from playing the server: TLS checks them on both sides.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from neuralforge_common.address import is_ip
from neuralforge_common.errors import FederationError, StorageError

AUTHORITY_LIFE = datetime.timedelta(days=3650)
LEAF_LIFE = datetime.timedelta(days=365)
BACKDATED = datetime.timedelta(minutes=5)
"""Certificates begin a little in the past: clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The federation's certificate authority, able to sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_authority(now: datetime.datetime) -> Authority:
    """Makes an authority: a fresh P-384 key and its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP384R1())
    # A random part in the name, so that two authorities are never taken for each other by their names.
    serial = x509.random_serial_number()
    name = _name(f"NeuralForge authority {serial:x}"[:64])
    builder = (
        _builder(name, name, key.public_key(), serial, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(certificate=builder.sign(key, hashes.SHA384()), key=key)


def create_server_certificate(
    authority: Authority, hosts: Sequence[str], now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Makes a fresh P-256 key and a certificate for the canonical `hosts`, the first of which is its name."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _leaf(authority, hosts[0][:64], key.public_key(), x509.random_serial_number(), now)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA384()), key


def issue_node_certificate(
    authority: Authority, key: ec.EllipticCurvePublicKey, name: str, serial: int, now: datetime.datetime
) -> x509.Certificate:
    """Certifies that a key is the node `name`; whoever asks has proved with a signed request that the key is theirs."""
    builder = _leaf(authority, name, key, serial, now).add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
    )
    return builder.sign(authority.key, hashes.SHA384())


def create_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PEM signing request without a name, which the server knows better; its signature proves possession."""
    return (
        x509.CertificateSigningRequestBuilder().subject_name(_name(None)).sign(key, hashes.SHA384()).public_bytes(PEM)
    )


def read_request(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request whose signature holds.

    Raises:
        FederationError: no request, another kind of key than P-384, or a signature by another key.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except Exception as error:  # whatever a foreign request can make a parser raise, it is refused
        raise FederationError("the signing request cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise FederationError(f"the node key: wanted one on P-384 (secp384r1), got {curve}")
    if not signed:
        raise FederationError("the signing request was not signed by the key that it names")
    return key


def read_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The first certificate of a PEM text; `what` names it in errors.

    Raises:
        FederationError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise FederationError(f"{what} is not a certificate") from error


def read_private_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """An unencrypted private key as PKCS 8 or in OpenSSH's format; `what` names its file in errors.

    Raises:
        StorageError: it is not one, or not on a NIST curve.
    """
    load = (
        serialization.load_ssh_private_key
        if pem.startswith(b"-----BEGIN OPENSSH")
        else serialization.load_pem_private_key
    )
    try:
        key = load(pem, None)
    except (ValueError, TypeError) as error:  # TypeError: a passphrase is wanted
        raise StorageError(f"{what}: it holds no private key that can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{what}: wanted a key on a NIST curve, got {type(key).__name__}")
    return key


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER bytes, 64 hex digits."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def certificate_hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and IP addresses that a server certificate is good for, in its order."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority's key signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def openssh_public_key(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as one line of OpenSSH's format, `ecdsa-sha2-nistp384 …`."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def private_pem(key: ec.EllipticCurvePrivateKey, *, openssh: bool = False) -> bytes:
    """A private key as PKCS 8, or in OpenSSH's format, unencrypted."""
    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, serialization.NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(PEM)


PEM = serialization.Encoding.PEM


def _name(common_name: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _leaf(
    authority: Authority, name: str, key: ec.EllipticCurvePublicKey, serial: int, now: datetime.datetime
) -> x509.CertificateBuilder:
    life = min(LEAF_LIFE, authority.certificate.not_valid_after_utc - now)
    issuer = authority.certificate
    return (
        _builder(_name(name), issuer.subject, key, serial, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if is_ip(host) else x509.DNSName(host)
