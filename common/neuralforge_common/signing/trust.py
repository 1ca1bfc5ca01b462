"""The keyring: whose signatures are believed here, for which team, until when.

A signature proves a key and nothing else; that a key is somebody's is what a person says, once, after they compared its
fingerprint with its owner. One key, one entry. A revoked key stays in the keyring and is never believed again; nothing
in a bundle proves *when* it was signed, so revoking and expiring refuse what was signed before, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime

from neuralforge_common.errors import SignatureError
from neuralforge_common.signing.keys import PublicKey
from neuralforge_common.strict_json import is_plain_text, shortened

_NAME = re.compile(r"\w[\w.@+-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Somebody whose key is known; times are aware, `expires` None is "never".

    Raises:
        SignatureError: a name, a team or a reason that is not plain.
    """

    name: str
    key: PublicKey
    added: datetime
    teams: tuple[str, ...] = ()
    expires: datetime | None = None
    revoked: datetime | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        for what, word in (("a name", self.name), *(("a team", team) for team in self.teams)):
            if not _NAME.fullmatch(word):
                raise SignatureError(f"wanted {what} of letters, digits and . _ @ + -, got {shortened(word)}")
        if len(self.reason) > 200 or not is_plain_text(self.reason):
            raise SignatureError(f"wanted one line of at most 200 characters as the reason, got {self.reason[:60]!r}")

    def standing(self, now: datetime) -> str:
        """In a word or two: "trusted", or why not."""
        if self.revoked is not None:
            return f"revoked on {self.revoked:%Y-%m-%d}" + (f": {self.reason}" if self.reason else "")
        if self.expires is not None and now >= self.expires:
            return f"expired on {self.expires:%Y-%m-%d}"
        return "trusted"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Everybody who is or was trusted, in the order in which they were added."""

    signers: tuple[Signer, ...] = ()

    def find(self, fingerprint: str) -> Signer | None:
        """The entry of a key."""
        return next((signer for signer in self.signers if signer.key.fingerprint == fingerprint), None)

    def trusted(self, fingerprint: str, *, team: str | None, now: datetime) -> Signer:
        """The signer of a key who is trusted now; with `team`, as one of that team.

        Raises:
            SignatureError: nobody has this key, or it is revoked, expired, or of other teams.
        """
        signer = self.find(fingerprint)
        if signer is None:
            raise SignatureError(
                f"nobody whose key is sha256:{fingerprint} is trusted on this machine",
                hint="get the public key from whom you believe, compare the fingerprint with them, then: "
                f"neuralforge trust add KEY.pub --name NAME{'' if team is None else f' --team {team}'}",
            )
        standing = signer.standing(now)
        if standing != "trusted":
            way_out = (
                "ask for the adapter, signed with a key that is trusted"
                if signer.revoked
                else f"if it is still theirs: neuralforge trust add KEY.pub --name {signer.name} --expires …"
            )
            raise SignatureError(f"the key of {signer.name} {'was ' if signer.revoked else ''}{standing}", hint=way_out)
        if team is not None and team not in signer.teams:
            of = f"of {', '.join(signer.teams)}" if signer.teams else "of no team"
            raise SignatureError(
                f"{signer.name} is trusted as one {of}, wanted {shortened(team)}",
                hint=f"if so: neuralforge trust add KEY.pub --name {signer.name} --team TEAM",
            )
        return signer

    def with_signer(self, signer: Signer) -> Keyring:
        """This keyring with somebody more; an older entry of the same key is replaced, without new teams its stay.

        Raises:
            SignatureError: the key was revoked, or the name is another living key's.
        """
        known = self.find(signer.key.fingerprint)
        if known is not None and known.revoked is not None:
            raise SignatureError(
                f"this key of {known.name} was {known.standing(signer.added)}; that is for good",
                hint="its owner makes a new one: neuralforge keygen",
            )
        for each in self.signers:
            if each.name == signer.name and each.revoked is None and each is not known:
                raise SignatureError(
                    f"{signer.name} is trusted with another key, sha256:{each.key.fingerprint}",
                    hint=f"neuralforge trust revoke {signer.name} first, or take another --name",
                )
        if known is None:
            return Keyring((*self.signers, signer))
        signer = replace(signer, teams=signer.teams or known.teams)
        return Keyring(tuple(signer if each is known else each for each in self.signers))

    def living(self, who: str) -> Signer:
        """The entry that is not revoked of a name or a fingerprint.

        Raises:
            SignatureError: there is none.
        """
        wanted = who.removeprefix("sha256:")
        for signer in self.signers:
            if signer.revoked is None and wanted in (signer.name, signer.key.fingerprint):
                return signer
        raise SignatureError(f"no such name or fingerprint is trusted: {shortened(who)}", hint="neuralforge trust list")

    def without(self, who: str, *, now: datetime, reason: str) -> Keyring:
        """This keyring with a key revoked, which a name or a fingerprint tells.

        Raises:
            SignatureError: there is no such key, or it was revoked before.
        """
        gone = self.living(who)
        revoked = replace(gone, revoked=now, reason=reason)
        return Keyring(tuple(revoked if each is gone else each for each in self.signers))
