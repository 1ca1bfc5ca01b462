"""The metadata of a composed adapter: its parents, what can still be said of it, and what no longer can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralforge.composition.joint_privacy import joint_privacy
from neuralforge.composition.method import Method
from neuralforge_common import __version__
from neuralforge_common.errors import AdapterError
from neuralforge_common.folder import AdapterFolder, AdapterMetadata
from neuralforge_common.lineage import Composition, Parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The metadata, the parents' custom tokens where they have any, and lines for the person."""

    metadata: AdapterMetadata
    tokenizer_json: bytes | None
    notices: tuple[str, ...]


def record_of(
    parents: Sequence[AdapterFolder],
    weights: Sequence[float],
    method: Method,
    *,
    name: str,
    created: str,
    learnt_on: int | None = None,
) -> Record:
    """What to write beside the weights; the parents' evaluations are dropped, they are not the whole's.

    Raises:
        AdapterError: the parents come with different custom tokens.
    """
    digests = [parent.weights_digest for parent in parents]
    notices = []
    privacy, told = joint_privacy(
        {digest: parent.metadata.privacy for digest, parent in zip(digests, parents, strict=True)}, learnt_on=learnt_on
    )
    if told:
        notices.append(told)
    licenses = sorted({parent.metadata.license or "none said" for parent in parents})
    if len(licenses) > 1:
        notices.append(f"the parents have different licenses ({', '.join(licenses)}): the result names none")
    return Record(
        metadata=AdapterMetadata(
            name=name,
            base_model=next((parent.metadata.base_model for parent in parents if parent.metadata.base_model), ""),
            license=parents[0].metadata.license if len(licenses) == 1 else "",
            created=created,
            neuralforge_version=__version__,
            privacy=privacy,
            composition=Composition(
                method=method.describe(),
                parents=tuple(
                    Parent(
                        name=parent.metadata.name,
                        version=parent.metadata.version,
                        digest=digest,
                        weight=weight,
                    )
                    for parent, digest, weight in zip(parents, digests, weights, strict=True)
                ),
                learnt_on=learnt_on,
            ),
        ),
        tokenizer_json=_tokenizer(parents),
        notices=tuple(notices),
    )


def _tokenizer(parents: Sequence[AdapterFolder]) -> bytes | None:
    found = {parent.tokenizer_path.read_bytes() for parent in parents if parent.tokenizer_path is not None}
    if len(found) > 1:
        raise AdapterError(
            "the adapters come with different custom tokens (tokenizer.json)",
            hint="compose adapters that were trained with one tokenizer",
        )
    return found.pop() if found else None
