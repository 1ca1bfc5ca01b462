"""A folder as PEFT's own `save_pretrained` would leave it: two files and a card, nothing of ours beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neuralforge.export.place import check_free
from neuralforge_common.atomic import replace_folder
from neuralforge_common.card import model_card
from neuralforge_common.codec import encode_tensors
from neuralforge_common.folder import CARD, PEFT_CONFIG, PEFT_WEIGHTS, TOKENIZER, AdapterFolder
from neuralforge_common.peft_config import encode_peft_config


def export_peft(folder: AdapterFolder, path: Path, *, base: str | None = None) -> None:
    """Write adapter_config.json, adapter_model.safetensors, README.md and custom tokens where there are any.

    `base` is what the configuration names as the base, where the adapter's own word for it means nothing elsewhere.

    Raises:
        StorageError: something is at `path`, or it cannot be written.
    """
    check_free(path)
    spec = replace(folder.spec, base=base, base_revision=None) if base else folder.spec
    with replace_folder(path) as unfinished:
        (unfinished / PEFT_CONFIG).write_bytes(encode_peft_config(spec))
        (unfinished / PEFT_WEIGHTS).write_bytes(encode_tensors(folder.state))
        (unfinished / CARD).write_text(model_card(folder.metadata, spec), encoding="utf-8")
        if folder.tokenizer_path is not None:
            (unfinished / TOKENIZER).write_bytes(folder.tokenizer_path.read_bytes())
