"""`adapters export`: an adapter for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge_common.folder import AdapterFolder

NAME = "export"
SUMMARY = "Write an adapter for other programs: stock PEFT, llama.cpp, or a whole model with it merged in."
EXAMPLES = """\
  neuralforge adapters export ./my-adapter.lora --to peft -o ./my-adapter-peft
  neuralforge adapters export ./my-adapter.lora --to gguf -o ./my-adapter.gguf
  neuralforge adapters export ./my-adapter.lora --to merged -o ./my-model"""

FORMATS = ("peft", "gguf", "merged")
DTYPES = ("float32", "bfloat16", "float16")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a .lora folder, or a folder that PEFT has saved")
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH", help="where; nothing may be there")
    parser.add_argument("--base", help="the base, where the one that the adapter names is elsewhere")
    parser.add_argument("--dtype", choices=DTYPES, help="merged: the weights' format (what the base is kept in)")


def run(args: argparse.Namespace) -> int:
    """Read, validate and write."""
    from neuralforge.export.place import check_free
    from neuralforge_common.errors import UsageError
    from neuralforge_common.folder import read_adapter_folder

    if args.dtype is not None and args.to != "merged":
        raise UsageError(f"--dtype is for --to merged, got --to {args.to}")
    check_free(args.output)
    folder = read_adapter_folder(args.adapter)
    for notice in folder.notices:
        print(notice, file=sys.stderr)
    if args.to == "peft":
        from neuralforge.export.stock_peft import export_peft

        export_peft(folder, args.output, base=args.base)
        print(f"{args.output}: PeftModel.from_pretrained(base, {str(args.output)!r})")
        print(f"  it no longer knows its base but by the name {args.base or folder.spec.base!r}")
    elif args.to == "gguf":
        _gguf(args, folder)
    else:
        _merged(args, folder)
    return 0


def _gguf(args: argparse.Namespace, folder: AdapterFolder) -> None:
    from neuralforge.export.gguf_lora import export_gguf
    from neuralforge.models.load import load_base_config

    name, revision = _base(args, folder)
    export_gguf(folder, load_base_config(name, revision=revision), args.output)
    print(f"{args.output}: llama-cli -m BASE.gguf --lora {args.output}")
    print("  BASE.gguf must be made of the adapter's own base: llama.cpp compares shapes alone")


def _merged(args: argparse.Namespace, folder: AdapterFolder) -> None:
    from neuralforge.export.merged import export_merged
    from neuralforge.models.load import load_base_config, load_base_model

    name, revision = _base(args, folder)
    kept = args.dtype or load_base_config(name, revision=revision).dtype or "float32"
    base = load_base_model(name, revision=revision, dtype=kept, device="cpu")
    for notice in base.notices:
        print(notice, file=sys.stderr)
    export_merged(folder, base, args.output)
    kind = str(kept).removeprefix("torch.")
    print(f"{args.output}: a model of {base.parameters:,} parameters, {kind}")
    if kind != "float32":
        print(f"  rounded to {kind}: some completions may differ from the adapter's; --dtype float32 keeps them")


def _base(args: argparse.Namespace, folder: AdapterFolder) -> tuple[str, str | None]:
    from neuralforge_common.errors import ModelError

    if args.base:
        return args.base, None
    if not folder.spec.base:
        raise ModelError(f"{args.adapter} does not name its base", hint="--base NAME")
    return folder.spec.base, folder.spec.base_revision
