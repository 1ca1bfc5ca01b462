"""A rotation is signed for one name, one new key and one time, and for nothing else."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from neuralforge_common.rotation import is_rotation_signed, sign_rotation

OLD, NEW, OTHER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
SAID = {"name": "laptop-7", "new_key": NEW.public_key(), "time": 1_800_000_000.25}


def test_what_the_old_key_signed_holds() -> None:
    assert is_rotation_signed(sign_rotation(OLD, **SAID), OLD.public_key(), **SAID)


@pytest.mark.parametrize("change", [{"name": "laptop-8"}, {"new_key": OTHER.public_key()}, {"time": 1_800_000_000.5}])
def test_any_other_statement_was_not_signed(change: dict[str, object]) -> None:
    assert not is_rotation_signed(sign_rotation(OLD, **SAID), OLD.public_key(), **SAID | change)


@pytest.mark.parametrize("signature", [b"", b"\x00" * 96, sign_rotation(OTHER, **SAID), sign_rotation(NEW, **SAID)])
def test_nobody_else_can_sign(signature: bytes) -> None:
    assert not is_rotation_signed(signature, OLD.public_key(), **SAID)
