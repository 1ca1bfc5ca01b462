"""Whether an uploaded folder may be published: everything that a client claims is checked again here."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from neuralforge_common.errors import AdapterError, SignatureError
from neuralforge_common.registry.gate import check_publishable
from neuralforge_common.signing.keys import PublicKey
from neuralforge_common.signing.trust import Keyring
from neuralforge_common.signing.verify import VerifiedAdapter, verify_adapter
from neuralforge_server.registry.uploads import UploadRequest


def admit(folder: Path, request: UploadRequest, keyring: Keyring, *, now: datetime) -> VerifiedAdapter:
    """Verifies an adapter folder as a version of a team's.

    Raises:
        AdapterError: it is not sound, not signed by a signer of the team, called otherwise, or the gate refuses it.
    """

    def trust(fingerprint: str) -> PublicKey:
        signer = keyring.find(fingerprint)
        standing = "trusted" if signer is None else signer.standing(now)
        if signer is None or request.team not in signer.teams or standing != "trusted":
            why = "" if standing == "trusted" else f" ({standing})"
            raise SignatureError(
                f"sha256:{fingerprint} is no key that signs for {request.team} here{why}",
                hint=f"whoever runs the registry: nf-server registry team add {request.team} --signer KEY.pub",
            )
        return signer.key

    try:
        # 1. Signed by the team, byte for byte, and a sound adapter.
        verified = verify_adapter(folder, trust)
        metadata = verified.adapter.metadata
        # 2. Under the name and the version that were signed: nobody passes one adapter off as another.
        for what, signed, wanted in (
            ("name", metadata.name, request.name),
            ("version", metadata.version, request.version),
        ):
            if signed != wanted:
                raise AdapterError(
                    f"{what}: the adapter's metadata.json says {signed}, it was to be published as {wanted}",
                    hint=f"publish it as {signed}, or change metadata.json and sign again",
                )
        # 3. The policy.
        check_publishable(metadata, signed=True)
    except AdapterError as error:
        # Where it lies on this machine is nobody's business.
        raise AdapterError(error.message.replace(f"{folder}: ", ""), hint=error.hint) from error
    return verified
