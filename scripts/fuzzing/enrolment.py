"""Enrolment and membership on loopback, for `scripts/fuzz.py`: an input is a call, and what must hold after.

The first byte of an input says who calls (`CALLERS` in federation.py), what follows is the request. Of each call
`admission.py` says beforehand whether it is to be answered and what the registry of nodes holds then. After it: the
status is that one; the reply is what was asked for; every row is as it was said, and no other is there; neither reply
nor refusal has a token or a private key in it; and what was given once is not given to another. Then the registry is
put back, so that no input depends on another.
"""

from __future__ import annotations

import logging
import random
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from fuzzing.admission import Given, joining, named_key, rotating
from fuzzing.calls import Answer, Finding, ask
from fuzzing.federation import CALLERS, MEMBERS, MOMENT, TOKENS, WITHOUT_TLS, Federation, called, key_of
from fuzzing.mutation import Words, change_request, mutate
from neuralforge_common.certificates import create_request, is_issued_by, read_certificate, read_private_key
from neuralforge_common.protocol import enrolment_pb2 as messages
from neuralforge_common.rotation import sign_rotation

_NEW, _OTHER = key_of("new"), key_of("other")
_DER, _INFO = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
_METHODS = {
    f"{service.name.lower()}.{method.name}": method
    for service in messages.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Harness:
    """A federation in which some are members, some were, and some are invited."""

    def __init__(self, target: str, place: Path, *, quiet: bool) -> None:
        """`place` is an empty folder; `quiet` drops what the server would log."""
        logging.disable(logging.ERROR if quiet else logging.NOTSET)
        self._method = _METHODS[target]
        self._federation = Federation(place)
        self._before = self._federation.rows()
        state = self._federation.state
        server_key = read_private_key(state.server_key_pem, "the server's key")
        numbers = [key.private_numbers().private_value for key in (state.authority.key, server_key)]
        self._secrets = [number.to_bytes(48, "big").lstrip(b"\0") for number in numbers]
        self._secrets += [state.secret, b"PRIVATE KEY", *(token.encode() for token in TOKENS.values())]
        self._words = _words()
        self._honest = [bytes([who]) + self._body(caller) for who, caller in enumerate(CALLERS)]
        alice = CALLERS.index("alice")
        if self._ask("alice", self._method.name, self._honest[alice][1:]).status != "OK":
            raise Finding("an honest call was refused")
        self._federation.put_back()

    def one(self, data: bytes) -> None:
        """One input; raises Finding."""
        if not data:
            return
        caller, sent = CALLERS[data[0] % len(CALLERS)], data[1:]
        status, given = self._wanted(caller, sent)
        answer = self._ask(caller, self._method.name, sent)
        if answer.status != status:
            raise Finding(f"{self._method.name} answered {caller} {answer.status}, not {status}: {answer.details}")
        serial = self._check_reply(caller, given, answer)
        after = self._before if given is None else given.rows(serial)
        self._check_rows(after)
        if given is None:
            return
        self._check_once(caller, sent, serial)
        self._check_rows(after)
        self._federation.put_back()

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Another input: now and then bytes as they come, else a request in which a field is another."""
        dice, honest = random.Random(seed), self._honest  # noqa: S311
        return mutate(data, most, dice, honest=honest, callers=len(CALLERS), changed=self._changed)

    def seeds(self) -> list[bytes]:
        """Inputs to begin with: of every caller what would be honest of it."""
        return self._honest

    def _body(self, caller: str) -> bytes:
        if self._method.name == "Join":
            request = messages.JoinRequest(token=TOKENS["erin"], signing_request_pem=create_request(_NEW))
            request.identity = b"\1" * 32
            return request.SerializeToString()
        if self._method.name == "RotateKey":
            return _rotation(caller, key_of("dave's next") if caller == "dave" else _NEW).SerializeToString()
        return b""

    def _changed(self, who: int, body: bytes, dice: random.Random) -> bytes:
        sent = change_request(self._method, body, dice, self._words)
        request = self._read(sent)
        if not isinstance(request, messages.RotateKeyRequest) or dice.random() < 0.3:
            return sent
        # Whatever was changed, the signature no longer holds: mostly the caller signs what it says now.
        signer, name = CALLERS[who], called(CALLERS[who])
        if dice.random() < 0.2:
            signer = dice.choice(CALLERS)
        if dice.random() < 0.1:
            name = dice.choice(CALLERS)
        key, _ = named_key(request.signing_request_pem)
        if key is not None:
            request.signature = sign_rotation(key_of(signer), name=name, new_key=key, time=request.time)
        return bytes(request.SerializeToString())

    def _ask(self, caller: str, method: str, sent: bytes) -> Answer:
        """A call to the service of this target, which must not tell what is secret."""
        service = self._method.containing_service
        answer = ask(self._federation.channel(caller, service.name), service.methods_by_name[method], sent)
        told = b"".join(answer.replies) + answer.details.encode()
        if any(secret in told for secret in self._secrets):
            raise Finding(f"{method} told {caller} what is secret")
        return answer

    def _read(self, sent: bytes) -> Any:
        """The request, None where the bytes are none."""
        try:
            return GetMessageClass(self._method.input_type).FromString(sent)
        except DecodeError:
            return None

    def _wanted(self, caller: str, sent: bytes) -> tuple[str, Given | None]:
        """The one status that a call may have, and what it gives."""
        method, given = self._method.name, None
        if self._method.containing_service.name == "Membership" and caller in WITHOUT_TLS:
            return "UNAVAILABLE", None
        if (request := self._read(sent)) is None:
            return "INVALID_ARGUMENT", None
        if method == "Join":
            given = joining(self._before, request)
        elif method == "RotateKey":
            given = rotating(self._before, caller, self._federation.serial_of(caller), request)
        allowed = given is not None or method == "Authority" or (method == "Describe" and caller in MEMBERS)
        return "OK" if allowed else "PERMISSION_DENIED", given

    def _check_reply(self, caller: str, given: Given | None, answer: Answer) -> str:
        """The reply says what was asked for; returns the number of the certificate in it."""
        if not answer.replies:
            return ""
        reply: Any = GetMessageClass(self._method.output_type).FromString(answer.replies[0])
        state, method = self._federation.state, self._method.name
        if method == "Authority" and reply.certificate_pem != state.authority_pem:
            raise Finding("Authority shows another certificate")
        if method == "Describe" and reply.name != caller:
            raise Finding(f"Describe takes {caller} for {reply.name}")
        if given is None:
            return ""
        certificate = read_certificate(reply.certificate_pem, f"what {method} sent")
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if name.value != given.name or (method == "Join" and reply.name != given.name):
            raise Finding(f"{method} gave {name.value} what is for {given.name}")
        if certificate.public_key() != given.key or not is_issued_by(certificate, state.authority.certificate):
            raise Finding(f"{method} gave {given.name} a certificate that is not for its key, or not by the authority")
        return f"{certificate.serial_number:x}"

    def _check_rows(self, wanted: object) -> None:
        if (found := self._federation.rows()) != wanted:
            raise Finding(f"the registry of nodes holds\n{found}\nand not\n{wanted}")

    def _check_once(self, caller: str, sent: bytes, serial: str) -> None:
        """What was given is not given to another key; only a rotation whose answer may have been lost is told again."""
        if self._method.name == "Join":
            other = self._read(sent)
            other.signing_request_pem = create_request(_OTHER)
            asked = [("Join", sent), ("Join", other.SerializeToString())]
        else:
            again = messages.RotateKeyReply.FromString(b"".join(self._ask(caller, "RotateKey", sent).replies))
            if f"{read_certificate(again.certificate_pem, 'what came again').serial_number:x}" != serial:
                raise Finding("the same rotation gave two certificates of different numbers")
            asked = [("Describe", b""), ("RotateKey", _rotation(caller, _OTHER).SerializeToString())]
        for method, request in asked:
            if (answer := self._ask(caller, method, request)).status != "PERMISSION_DENIED":
                raise Finding(f"then {method} answered {answer.status}: {answer.details}")


def _rotation(caller: str, new_key: ec.EllipticCurvePrivateKey) -> messages.RotateKeyRequest:
    signature = sign_rotation(key_of(caller), name=called(caller), new_key=new_key.public_key(), time=MOMENT)
    return messages.RotateKeyRequest(signing_request_pem=create_request(new_key), time=MOMENT, signature=signature)


def _words() -> Words:
    """What a field may nearly rightly hold."""
    names = ("new", "alice", "bob", "carol", "dave", "dave's next")
    requests = [create_request(key_of(name)) for name in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (ec.derive_private_key(8472, ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
        requests.append(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    # One that asks for another's key, and that one's own has signed.
    theirs, mine = (key_of(name).public_key().public_bytes(_DER, _INFO) for name in ("stolen", "new"))
    requests.append(x509.load_pem_x509_csr(requests[0]).public_bytes(_DER).replace(mine, theirs))
    requests[-1] = ssl.DER_cert_to_PEM_cert(requests[-1]).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    return (
        *(*TOKENS.values(), "", "nfj_", "x" * 128, "x" * 129, "alice", TOKENS["erin"] + " ", TOKENS["erin"].upper()),
        *(*requests, b"\2" * 32, b"\2" * 31, b""),
        *(MOMENT + apart for apart in (-301.0, -300.0, -299.0, 0.0, 299.0, 300.0, 301.0)),
    )
