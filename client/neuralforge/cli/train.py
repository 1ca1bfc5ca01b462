"""`train`: from a repository or a dataset to an adapter."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "train"
SUMMARY = "Train a LoRA adapter on a git repository, source folders or a JSONL dataset."
EXAMPLES = """\
  neuralforge train --from-git ./my-project
  neuralforge train --dataset ./training-data.jsonl --rank 16 --epochs 5
  neuralforge train --config training-config.yaml --tensorboard ./logs --checkpoint-dir ./checkpoints
  neuralforge train --config training-config.yaml --dry-run
  neuralforge train --from-git ./my-project --resume auto"""

OPTIONS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("data", "--from-git", "dataset.from_git", {"metavar": "DIR", "help": "learn from the commit checked out there"}),
    ("data", "--source", "dataset.sources", {"metavar": "DIR", "action": "append", "help": "learn from a folder"}),
    ("data", "--dataset", "dataset.train_file", {"metavar": "FILE", "help": "learn from a JSONL file"}),
    ("data", "--eval-dataset", "dataset.eval_file", {"metavar": "FILE", "help": "hold out this JSONL file"}),
    ("data", "--pattern", "dataset.patterns", {"action": "append", "help": "only files like this, e.g. '*.java'"}),
    ("data", "--language", "dataset.language", {"help": "only this language"}),
    ("data", "--max-samples", "dataset.max_samples", {"metavar": "N", "help": "learn from at most N examples"}),
    ("data", "--max-length", "dataset.max_length", {"metavar": "TOKENS", "help": "cut examples to this length"}),
    ("model", "--base", "model.base", {"help": "friendly name, hub id, folder or .gguf file"}),
    ("model", "--revision", "model.revision", {"help": "the hub's branch, tag or commit"}),
    ("model", "--name", "model.adapter_name", {"help": "the adapter's name"}),
    ("model", "--trust-remote-code", "model.trust_remote_code", {"action": "store_const", "const": "true"}),
    ("lora", "--rank", "lora.rank", {"metavar": "R"}),
    ("lora", "--alpha", "lora.alpha", {"metavar": "A", "help": "scaling is alpha / rank; default 2 x rank"}),
    ("lora", "--dropout", "lora.dropout", {"metavar": "P"}),
    ("lora", "--target-modules", "lora.target_modules", {"metavar": "NAMES", "help": "auto, or q_proj,v_proj"}),
    ("lora", "--top-layers", "lora.top_layers", {"metavar": "N", "help": "adapt only the top N layers: faster"}),
    ("training", "--epochs", "training.epochs", {"metavar": "N"}),
    ("training", "--max-steps", "training.max_steps", {"metavar": "N"}),
    ("training", "--batch-size", "training.batch_size", {"metavar": "N"}),
    ("training", "--gradient-accumulation-steps", "training.gradient_accumulation_steps", {"metavar": "N"}),
    ("training", "--learning-rate", "training.learning_rate", {"metavar": "RATE"}),
    ("training", "--scheduler", "training.scheduler", {"help": "linear, cosine or constant"}),
    ("training", "--warmup-steps", "training.warmup_steps", {"metavar": "N"}),
    ("training", "--seed", "training.seed", {"metavar": "N"}),
    ("speed", "--device", "training.device", {"help": "auto, cpu, cuda, mps"}),
    ("speed", "--threads", "training.threads", {"metavar": "N"}),
    ("speed", "--fp16", "training.fp16", {"action": "store_const", "const": "true", "help": "mixed precision"}),
    ("speed", "--precision", "training.precision", {"help": "auto, fp32, bf16 or fp16"}),
    (
        "speed",
        "--gradient-checkpointing",
        "training.gradient_checkpointing",
        {"action": "store_const", "const": "true", "help": "save memory, recompute activations"},
    ),
    ("speed", "--int8", "training.int8", {"help": "off, backward or full: int8 frozen weights; faster, not exact"}),
    ("speed", "--engine", "training.engine", {"help": "auto, fast or general"}),
    ("output", "--output", "output.directory", {"metavar": "DIR", "help": "where NAME.lora goes"}),
    ("output", "--checkpoint-dir", "output.checkpoint_dir", {"metavar": "DIR"}),
    ("output", "--tensorboard", "output.tensorboard", {"metavar": "DIR"}),
    ("output", "--resume", "output.resume", {"help": "auto: go on from the last checkpoint"}),
)
"""Group, option, the configuration key that it sets, and what argparse needs to know."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; what is not given stays out, so that file and environment speak first."""
    parser.add_argument("--config", metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the steps")
    parser.add_argument("--interactive", action="store_true", help="be asked for the essentials")
    groups: dict[str, Any] = {}
    for group, option, key, settings in OPTIONS:
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(option, dest=key, default=argparse.SUPPRESS, **settings)
    debug = parser.add_argument_group("debugging")
    debug.add_argument("--debug", action="store_true", help="a traceback instead of one line; more in the metrics")
    debug.add_argument("--log-level", default="WARNING", metavar="LEVEL", help="of the libraries: DEBUG, INFO, …")
    debug.add_argument("--profile-memory", action="store_true", help="resident memory of each step in metrics.jsonl")
    debug.add_argument("--track-gradients", action="store_true", help="gradient norm of each matrix in metrics.jsonl")


def run(args: argparse.Namespace) -> int:
    """Resolve the configuration, then train, ask or only tell."""
    from neuralforge.cli.train_session import Debugging, dry_run, interactive, train

    overrides = {key: value for _, _, key, _ in OPTIONS if (value := getattr(args, key, None)) is not None}
    if args.interactive:
        overrides = interactive(overrides)
    debugging = Debugging(
        log_level=args.log_level,
        profile_memory=args.profile_memory,
        track_gradients=args.track_gradients,
    )
    if args.dry_run:
        return dry_run(args.config, overrides)
    return train(args.config, overrides, debugging)
