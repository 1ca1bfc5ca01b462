"""A session in a block of its own: earlier blocks stay as they are, and one adapter is made of all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from neuralforge.continual.gates import Gates, gated, learn_gates
from neuralforge.continual.order import pairs
from neuralforge.continual.orthogonal import Orthogonality
from neuralforge.continual.progressive import grow, merge
from neuralforge.data.tokens import TokenizedExample
from neuralforge.training.trainer import LoRATrainer, TrainResult
from neuralforge_common.adapter import MAX_STATE_BYTES, AdapterSpec, AdapterState
from neuralforge_common.codec import MAX_HEADER_BYTES, decode_tensors, encode_tensors
from neuralforge_common.errors import AdapterError, CheckpointError
from neuralforge_common.key_files import read_private_file, write_private_file

MOST_BLOCKS = 8
"""With so many, the next session begins with the adapter that was made of them as its first block."""

TOLD = 16
"""Examples of a language, new ones and earlier ones each, that its weights of the blocks are learnt on."""

FEWEST = 8
"""With fewer a language gets no weights of its own."""

_A_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+#_-]{0,39}")
"""What a data set of strangers may call a language that becomes the name of a folder."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """The blocks of all sessions, of these `ranks`, side by side as one adapter of the summed rank, none weighed."""

    spec: AdapterSpec
    state: AdapterState
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, spec: AdapterSpec, state: AdapterState) -> Blocks:
        """A whole adapter as the first block."""
        return cls(spec=spec, state=state, ranks=(spec.rank,))

    def with_another(self, rank: int, *, seed: int) -> Blocks:
        """The same and a block that computes nothing yet."""
        spec, state = grow(self.spec, self.state, rank, seed=seed)
        return Blocks(spec=spec, state=state, ranks=(*self.ranks, rank))

    def save(self, path: Path) -> None:
        """Write the matrices, for their owner alone; raises StorageError."""
        write_private_file(path, encode_tensors(self.state))

    @classmethod
    def load(cls, path: Path, *, of: AdapterSpec, ranks: tuple[int, ...], digest: str) -> Blocks:
        """Read what `save` has written, of the adapter `of` that was made of them.

        Raises:
            CheckpointError: it is damaged.
            StorageError: it cannot be read, or others than its owner may read it.
        """
        data = read_private_file(path, limit=MAX_STATE_BYTES + MAX_HEADER_BYTES)
        try:
            arrays, _ = decode_tensors(BytesIO(data), len(data), what="what is kept of the blocks")
            state = AdapterState.adopt(arrays)
            if state.digest() != digest:
                raise AdapterError("its contents do not match their digest")
        except AdapterError as fault:
            raise CheckpointError(
                f"{path} is damaged: {fault.message}",
                hint="go on without --progressive: the adapter itself is whole",
            ) from fault
        rank = sum(ranks)
        return cls(spec=replace(of, rank=rank, alpha=of.scaling * rank), state=state, ranks=ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """How one adapter was made of `blocks`, each of them weighing 1.

    `error` is what it has missed, as a share of the whole (see `progressive.merge`); `gates` are the weights that serve
    each language best, none where there are not two languages to tell apart.
    """

    blocks: Blocks
    error: float
    gates: Mapping[str, Gates]

    def of_language(self, language: str) -> tuple[AdapterSpec, AdapterState]:
        """The blocks weighed for a language that has gates: an adapter as wide as all of them together."""
        return self.blocks.spec, gated(self.blocks.state, self.blocks.ranks, self.gates[language].weights)


def learn_block(
    trainer: LoRATrainer,
    blocks: Blocks,
    train: Sequence[TokenizedExample],
    evaluation: Sequence[TokenizedExample],
    *,
    earlier: Sequence[TokenizedExample],
    orthogonal_lambda: float,
    seed: int,
    **training: Any,
) -> tuple[LoRATrainer, TrainResult, Merged | None]:
    """Train a new block beside frozen ones, and merge all of them into one adapter of the rank of `trainer`.

    `trainer` is spent; the one that is returned carries the merged adapter, and what the result tells of before and
    after is of that. Where training was asked to stop it carries what was there, and nothing is merged.

    The block has the rank of the adapter. `orthogonal_lambda` above 0 keeps its inputs at right angles to the earlier
    blocks' (O-LoRA). `earlier` are examples of earlier sessions, to weigh the blocks by language; `training`
    goes to `LoRATrainer.train`.
    """
    own, stands = trainer.spec, trainer.state()
    before = trainer.evaluate(evaluation) if evaluation else None
    wider = blocks.with_another(own.rank, seed=seed)
    wide = trainer.resized(wider.spec, wider.state)
    old = blocks.spec.rank
    right_angles = Orthogonality(weight=orthogonal_lambda, old=old, modules=pairs(wide.flat))
    result = wide.train(
        train,
        evaluation or None,
        trainable=wide.flat.mask(skip=old),
        penalties=[right_angles] if orthogonal_lambda > 0 else [],
        **training,
    )
    if not result.completed:
        return wide.resized(own, stands), result, None
    learnt = replace(wider, state=wide.state())
    gates = {language: learn_gates(wide, learnt.ranks, told) for language, told in _by_language(train, earlier).items()}
    _, state, error = merge(learnt.spec, learnt.state, own.rank)
    narrow = wide.resized(own, state)
    after = narrow.evaluate(evaluation) if evaluation else None
    merged = Merged(blocks=learnt, error=error, gates=gates)
    return narrow, replace(result, before=before, after=after), merged


def _by_language(
    train: Sequence[TokenizedExample], earlier: Sequence[TokenizedExample]
) -> dict[str, list[TokenizedExample]]:
    """What each language's weights are learnt on; empty where there are not two, or nothing but new examples."""
    found = {}
    for language in sorted({example.language for example in (*train, *earlier)}):
        sides = ([example for example in side if example.language == language] for side in (train, earlier))
        told = [example for side in sides for example in _spread(side, TOLD)]
        if len(told) >= FEWEST and _A_NAME.fullmatch(language):
            found[language] = [replace(example, index=index) for index, example in enumerate(told)]
    return found if earlier and len(found) > 1 else {}


def _spread(examples: Sequence[TokenizedExample], most: int) -> list[TokenizedExample]:
    """At most so many, evenly spaced, in order."""
    if len(examples) <= most:
        return list(examples)
    return [examples[i * len(examples) // most] for i in range(most)]
