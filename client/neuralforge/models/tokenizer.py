"""The tokenizer of a base, exactly as its tokenizer.json says."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from neuralforge.models.base import end_token_id

# What decides which ids a text becomes and what text ids become.
_STAGES = ("normalizer", "pre_tokenizer", "decoder")


def load_tokenizer(
    source: str, *, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer of a folder or hub id with a pad token, and notices; errors are transformers' own.

    transformers 5 rebuilds some tokenizers (SmolLM2's and StarCoder2's `GPT2Tokenizer` among them) without the stages
    in tokenizer.json: digits are then no longer split and ids differ from those that the model was trained on. The
    file is what the model's authors published, so its stages are put back.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, revision=revision, trust_remote_code=trust_remote_code
    )
    notices: tuple[str, ...] = ()
    file = cached_file(source, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if file is not None and isinstance(backend, Tokenizer):
        restored = restore_stages(backend, json.loads(Path(file).read_text(encoding="utf-8")))
        if restored:
            notices = (f"tokenizer: {', '.join(restored)} taken from tokenizer.json, transformers had dropped it",)
    if tokenizer.pad_token_id is None:
        # An id that exists: a new token would resize the embeddings, and padding is masked anyway.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(end_token_id(tokenizer))
    return tokenizer, notices


def restore_stages(backend: Tokenizer, published: dict[str, Any]) -> tuple[str, ...]:
    """Give a byte-pair backend the stages of the published tokenizer.json; the names of those that differed."""
    model = published.get("model", {})
    if model.get("type") != "BPE":
        return ()
    # Without vocabulary and merges the file is read in a millisecond.
    stages = Tokenizer.from_str(
        json.dumps({**published, "model": {**model, "vocab": {}, "merges": []}, "added_tokens": []})
    )
    restored = []
    for name in _STAGES:
        wanted, found = getattr(stages, name), getattr(backend, name)
        if _state(wanted) != _state(found):
            setattr(backend, name, wanted)
            restored.append(name.replace("_", "-"))
    return tuple(restored)


def _state(stage: Any) -> object:
    return None if stage is None else json.loads(stage.__getstate__())
