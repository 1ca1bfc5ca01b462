"""How a session ends: what it leaves for later ones, then the adapter; both are put down, or neither."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.continual import history as places
from neuralforge.continual.blocks import Merged
from neuralforge.continual.dark import answers
from neuralforge.continual.ewc import EWCRegularizer
from neuralforge.continual.forgetting import score_with
from neuralforge.continual.held_out import HeldOut
from neuralforge.continual.history import Record, Session, adapter_digest
from neuralforge.continual.remembered import Remembered
from neuralforge.data.dataset import Dataset
from neuralforge.data.example import Example
from neuralforge.data.run_folder import HELD_OUT_FILE, REPLAY, languages_folder
from neuralforge.evaluation.metrics import Evaluation
from neuralforge.training.trainer import LoRATrainer, TrainResult, utc_now
from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import AdapterState
from neuralforge_common.atomic import storage_errors
from neuralforge_common.folder import AdapterFolder, write_adapter_folder
from neuralforge_common.lineage import Predecessor

if TYPE_CHECKING:
    from neuralforge.privacy.session import PrivateSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A training that has ended: on `examples` of `data`, with so many earlier ones at hand to be `replayed`.

    `base` is the score of the untouched base on what was held out; `merged` is of a session in a block of its own;
    `private` says what may be kept and told of a private one.
    """

    data: Dataset
    examples: Sequence[Example]
    replayed: int
    result: TrainResult
    base: Evaluation | None
    merged: Merged | None = None
    private: PrivateSession | None = None


def keep(
    remembered: Remembered, trainer: LoRATrainer, ewc: EWCRegularizer, taught: Taught, *, der_alpha: float
) -> Session:
    """Put down adapter and history as they are after this session; the caller holds the history's lock.

    With a `der_alpha` above 0 the adapter's answers are kept beside the examples. Raises StorageError: adapter and
    history are then as they were.
    """
    sessions, key, data = remembered.record.sessions, remembered.key, taught.data
    name, now = str(len(sessions) + 1), utc_now()
    length = trainer.max_length
    if ewc.ewc_lambda > 0 and taught.private is not None:
        taught.private.consolidate(ewc, trainer)
    elif ewc.ewc_lambda > 0:
        ewc.consolidate(trainer, taught.examples, seed=len(sessions))
    else:
        # With the anchor of an older session a later one would be pulled back behind this one.
        ewc.state = None
    # 1. All of it into `next/`.
    place = remembered.history.stage(anew=remembered.anew)
    made = tuple(vault for vault in places.VAULTS if key and not (place / vault).is_dir())
    held, held_out = 0, remembered.held_out
    ewc.save(place / places.EWC)
    blocks = taught.merged.blocks if taught.merged else None
    if blocks is not None:
        blocks.save(place / places.BLOCKS)
    if key is not None:
        buffer = remembered.open_buffer(place / REPLAY, key)
        if taught.private is not None:
            buffer.add(taught.private.joining(taught.examples), session=name)
        else:
            given = answers(trainer, taught.examples) if der_alpha > 0 else None
            buffer.add(taught.examples, session=name, answers=given)
        vault = HeldOut.open(place / places.HELD_OUT, key)
        then = score_with(trainer)(data.evaluation, length) if data.evaluation else []
        held = vault.add(name, data.evaluation, then, max_length=length)
        held_out = vault.items()
    session = Session(
        name=name,
        learnt=now,
        examples=len(taught.examples),
        replayed=taught.replayed,
        held_out=held,
        max_length=length,
        ewc_lambda=0.0 if taught.merged else ewc.ewc_lambda,
        merged=taught.merged.error if taught.merged else None,
    )
    state = trainer.state()
    record = Record(
        adapter=adapter_digest(trainer.spec, state),
        sessions=(*sessions, session),
        balance=remembered.balance if key else remembered.record.balance,
        ewc=ewc.state is not None,
        made=made,
        blocks=blocks.ranks if blocks else (),
        blocks_digest=blocks.state.digest() if blocks else "",
    )
    remembered.history.write_next(record)
    # 2. The adapter: from here on the session has happened.
    if key is not None:
        # What a plain training has held out, in the clear: it may well have been learnt now.
        (remembered.history.folder.parent / HELD_OUT_FILE).unlink(missing_ok=True)
    _write_adapter(remembered, trainer, taught, state, now)
    # 3. and 4. The history after it.
    remembered.history.settle(record)
    remembered.moved_on(record, held_out)
    return session


def _write_adapter(remembered: Remembered, trainer: LoRATrainer, taught: Taught, state: AdapterState, now: str) -> None:
    found, base, after = remembered.found, taught.base, taught.result.after
    facts = (
        found.metadata
        if found
        else metadata.AdapterMetadata(
            name=remembered.path.name.removesuffix(".lora"),
            description=f"LoRA adapter of rank {trainer.spec.rank} on {trainer.base.name}",
        )
    )
    scores = None
    if base is not None and after is not None:
        scores = metadata.Evaluation(
            base=metadata.Scores(perplexity=base.perplexity, accuracy=base.accuracy),
            adapter=metadata.Scores(perplexity=after.perplexity, accuracy=after.accuracy),
            samples=after.examples,
        )
    facts = replace(
        facts,
        training_samples=(facts.training_samples or 0) + len(taught.examples),
        accuracy=after.accuracy if after else None,
        created=now,
        dataset_digest=taught.data.digest,
        base_model=trainer.base.name,
        neuralforge_version=__version__,
        evaluation=scores,
        privacy=None,  # that of an earlier session is no longer true
        allow_worse=False,  # said of what was published then
        parent=_predecessor(found) if found else None,
        digests={},
    )
    if taught.private is not None:
        facts = taught.private.told(facts)
    tokenizer = found.tokenizer_path.read_bytes() if found and found.tokenizer_path else None
    write_adapter_folder(remembered.path, spec=trainer.spec, state=state, metadata=facts, tokenizer_json=tokenizer)
    _write_languages(remembered.path, taught.merged, facts, tokenizer)


def _predecessor(found: AdapterFolder) -> Predecessor:
    return Predecessor(name=found.metadata.name, version=found.metadata.version, digest=found.weights_digest)


def _write_languages(
    adapter: Path, merged: Merged | None, facts: metadata.AdapterMetadata, tokenizer: bytes | None
) -> None:
    """An adapter for each language that has weights of its own; those of an earlier session go."""
    folder = languages_folder(adapter)
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if merged is None:
        return
    for language in merged.gates:
        spec, state = merged.of_language(language)
        write_adapter_folder(
            folder / f"{language}.lora",
            spec=spec,
            state=state,
            metadata=replace(facts, description=f"{facts.description}, for {language}", accuracy=None, evaluation=None),
            tokenizer_json=tokenizer,
        )
