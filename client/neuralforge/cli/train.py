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
  neuralforge train --from-git ./my-project --resume auto
  neuralforge train --from-git . --since "1 week ago" --continue-from ./my-adapter.lora
  neuralforge train --from-git . --private --target-epsilon 8 --delta 1e-5
  neuralforge train --from-git . --tasks completion=0.5,bug_detection=0.3,documentation=0.2
  neuralforge train --server nf://build-box:8470 --config configs/client.yaml"""

OPTIONS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "data": (
        ("--from-git", "dataset.from_git", "DIR", "learn from the commit checked out there"),
        ("--since", "dataset.since", "DATE", "of --from-git only files that have changed since, e.g. '1 week ago'"),
        ("--source", "dataset.sources", "DIR…", "learn from a folder"),
        ("--dataset", "dataset.train_file", "FILE", "learn from a JSONL file"),
        ("--eval-dataset", "dataset.eval_file", "FILE", "hold out this JSONL file"),
        ("--pattern", "dataset.patterns", "GLOB…", "only files like this, e.g. '*.java'"),
        ("--language", "dataset.language", "NAME", "only this language"),
        ("--max-samples", "dataset.max_samples", "N", "learn from at most N examples"),
        ("--eval-fraction", "dataset.eval_fraction", "F", "hold out this share; 0 for none (0.1)"),
        ("--max-eval-samples", "dataset.max_eval_samples", "N", "hold out at most N examples (100)"),
        ("--max-length", "dataset.max_length", "TOKENS", "cut examples to this length (256)"),
    ),
    "model": (
        ("--base", "model.base", "BASE", "friendly name, hub id, folder or .gguf file"),
        ("--revision", "model.revision", "REV", "the hub's branch, tag or commit"),
        ("--name", "model.adapter_name", "NAME", "the adapter's name (my-adapter)"),
        (
            "--trust-remote-code",
            "model.trust_remote_code",
            "",
            "run code that comes with the base; off unless you say so",
        ),
    ),
    "lora": (
        ("--rank", "lora.rank", "R", "rank of the adapter (8)"),
        ("--alpha", "lora.alpha", "A", "scaling is alpha / rank; default 2 x rank"),
        ("--dropout", "lora.dropout", "P", "dropout on the adapter's input (0)"),
        ("--target-modules", "lora.target_modules", "NAMES", "auto, or q_proj,v_proj"),
        ("--top-layers", "lora.top_layers", "N", "adapt only the top N layers: faster"),
    ),
    "training": (
        ("--epochs", "training.epochs", "N", "passes over the data (3)"),
        ("--max-steps", "training.max_steps", "N", "stop after so many steps"),
        ("--batch-size", "training.batch_size", "N", "examples a batch (4)"),
        ("--gradient-accumulation-steps", "training.gradient_accumulation_steps", "N", "batches a step (1)"),
        ("--learning-rate", "training.learning_rate", "RATE", "default: by the base's size"),
        ("--scheduler", "training.scheduler", "NAME", "linear, cosine or constant"),
        ("--warmup-steps", "training.warmup_steps", "N", "steps until the full rate (a tenth, at most 10)"),
        ("--loss", "training.loss", "NAME", "cross_entropy, label_smoothing, syntax_penalised, style_consistent"),
        ("--loss-on-context", "training.loss_on_context", "", "learn the code in front of completions, too"),
        ("--tasks", "tasks", "TASK=SHARE", "by comma: shares of completion, bug_detection, documentation"),
        ("--seed", "training.seed", "N", "the same seed gives the same adapter (0)"),
    ),
    "speed": (
        ("--device", "training.device", "NAME", "auto, cpu, cuda, mps"),
        ("--threads", "training.threads", "N", "of the CPU; default: torch's"),
        ("--fp16", "training.fp16", "", "mixed precision"),
        ("--precision", "training.precision", "NAME", "auto, fp32, bf16 or fp16"),
        ("--gradient-checkpointing", "training.gradient_checkpointing", "", "save memory, recompute activations"),
        ("--int8", "training.int8", "WHERE", "off, backward or full: int8 frozen weights; faster, not exact"),
        ("--engine", "training.engine", "NAME", "auto, fast or general"),
    ),
    "learning in sessions": (
        ("--continue-from", "optimization.continue_from", "ADAPTER", "go on with this adapter, and keep what it knows"),
        ("--remember", "optimization.remember", "", "of a first session: leave behind what a later one needs"),
        ("--ewc-lambda", "optimization.ewc_lambda", "L", "how firmly old knowledge is held (0.1; 0.5 without replay)"),
        ("--replay-buffer-size", "optimization.replay_buffer_size", "N", "earlier examples to keep; 0 for none (1000)"),
        ("--replay-ratio", "optimization.replay_ratio", "F", "share of replayed examples in a batch (0.2)"),
        ("--replay-balance", "optimization.replay_balance", "HOW", "keep uniform, or even by language or session"),
        ("--der-alpha", "optimization.der_alpha", "A", "DER++: weight of the answers of that time (0.5)"),
        (
            "--progressive",
            "optimization.progressive",
            "",
            "learn in a block beside frozen earlier ones, then merge",
        ),
        ("--orthogonal-lambda", "optimization.orthogonal_lambda", "L", "O-LoRA: hold that block at right angles (0)"),
        ("--key-file", "optimization.key_file", "FILE", "lock what is kept of the code with this key file"),
    ),
    "privacy": (
        ("--private", "privacy.enabled", "", "differential privacy: no example can be told from what is learnt"),
        ("--target-epsilon", "privacy.target_epsilon", "E", "what may be told of a unit at most, over all runs (8)"),
        ("--delta", "privacy.delta", "D", "but for this probability (1e-5)"),
        ("--noise-multiplier", "privacy.noise_multiplier", "S", "default: computed from the target and the steps"),
        (
            "--sample-rate",
            "privacy.sample_rate",
            "Q",
            "chance of a unit to be drawn in a step; 1/Q steps an epoch",
        ),
        ("--privacy-unit", "privacy.unit", "UNIT", "sample, file or repository: what cannot be told"),
        ("--accountant", "privacy.accountant", "NAME", "rdp, or prv: less noise, for a run that is never resumed"),
    ),
    "output": (
        ("--output", "output.directory", "DIR", "where NAME.lora goes"),
        ("--checkpoint-dir", "output.checkpoint_dir", "DIR", "default: DIR/.neuralforge/NAME"),
        ("--tensorboard", "output.tensorboard", "DIR", "write TensorBoard's event files here"),
        ("--resume", "output.resume", "WHEN", "auto: go on from the last checkpoint"),
    ),
    "federation": (
        ("--server", "federation.server", "ADDRESS", "take part in this federation: nf://host:port, or its name"),
        ("--policy", "federation.policy", "FILE", "what this machine agrees to, see configs/site_policy.yaml"),
        ("--max-rank", "federation.max_rank", "R", "train at most at this rank, whatever the federation's is"),
    ),
}
"""Group -> option, the configuration key that it sets, what it takes (nothing: a switch; DIR…: repeatedly), help."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; what is not given stays out, so that file and environment speak first."""
    parser.add_argument("--config", metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the steps")
    parser.add_argument("--interactive", action="store_true", help="be asked for the essentials")
    for group, options in OPTIONS.items():
        section = parser.add_argument_group(group)
        for option, key, takes, text in options:
            settings: dict[str, Any] = {"metavar": takes.removesuffix("…")} if takes else {"const": "true"}
            settings["action"] = "append" if takes.endswith("…") else "store" if takes else "store_const"
            section.add_argument(option, dest=key, default=argparse.SUPPRESS, help=text, **settings)
    debug = parser.add_argument_group("debugging")
    debug.add_argument("--debug", action="store_true", help="a traceback before the one line that says what failed")
    debug.add_argument(
        "--log-level", type=str.upper, choices=LOG_LEVELS, default="WARNING", metavar="LEVEL", help="of the libraries"
    )
    debug.add_argument("--profile-memory", action="store_true", help="resident memory of each step in metrics.jsonl")
    debug.add_argument("--track-gradients", action="store_true", help="gradient norm of each matrix in metrics.jsonl")


def run(args: argparse.Namespace) -> int:
    """Resolve the configuration, then train, ask or only tell."""
    from neuralforge.cli.task_shares import shares_given

    keys = [key for options in OPTIONS.values() for _, key, _, _ in options]
    overrides = {key: value for key in keys if (value := getattr(args, key, None)) is not None}
    if "tasks" in overrides:
        overrides |= shares_given(overrides.pop("tasks"))
    if args.interactive:
        from neuralforge.cli.train_interactive import interactive

        overrides = interactive(args.config, overrides)
    if args.dry_run:
        from neuralforge.cli.train_preview import dry_run

        return dry_run(args.config, overrides)
    from neuralforge.cli.train_session import Debugging, train

    debugging = Debugging(
        log_level=args.log_level,
        profile_memory=args.profile_memory,
        track_gradients=args.track_gradients,
    )
    return train(args.config, overrides, debugging)
