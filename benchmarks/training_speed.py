"""Training speed side by side with TRL and the Hugging Face Trainer: same base, samples, LoRA, optimizer and machine.

Every contestant trains on the same samples in the same batches in a process of its own, one after the other. Counted
are tokens of samples: padding is nobody's work. The adapters are then judged by one neutral process, plain
transformers and PEFT, on samples that none of them saw. The machine's own matrix rate is measured in the same run.

    python benchmarks/training_speed.py                  about 20 minutes on two cores
    python benchmarks/training_speed.py --quick          under 50 seconds, a rough figure
    python benchmarks/training_speed.py --techniques     ours, one switch at a time

Needs the extra `benchmarks` (trl, datasets). Data: the sources of an installed package, `--source` for another folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SEED = 0
RANK, ALPHA, RATE, WARMUP, BATCH = 8, 16.0, 3e-3, 10, 4
STOCK = {
    "trl-default": "TRL SFTTrainer, its defaults (fp32 weights, bf16 autocast, checkpointing)",
    "hf-fp32": "HF Trainer + PEFT, fp32",
    "hf-bf16": "HF Trainer + PEFT, bf16 weights",
    "hf-bf16-eager": "HF Trainer + PEFT, bf16 weights, eager attention",
    "trl-bf16": "TRL SFTTrainer, bf16 weights, no checkpointing",
    "trl-bf16-eager": "TRL SFTTrainer, bf16 weights, no checkpointing, eager attention",
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("NeuralForge, its defaults", {}),
    "ours-prefix": ("NeuralForge, LoRA on the top half, prefix cached", {"top": 0.5, "epochs": 3}),
    "ours-general-sdpa": ("general engine, transformers' SDPA", {"engine": "general", "attention": "sdpa"}),
    "ours-general": ("general engine, attention by matmul", {"engine": "general"}),
    "ours-top-half": ("fast engine, LoRA on the top half, no cache", {"top": 0.5, "cache_bytes": 0}),
    "ours-no-context-gradients": ("fast engine, backward through completion rows only", {"context_gradients": False}),
    "ours-int8-backward": ("fast engine, int8 frozen weights in backward", {"int8": "backward"}),
    "ours-int8": ("fast engine, int8 frozen weights", {"int8": "full"}),
}
MAIN = (*STOCK, "ours", "ours-prefix")
QUICK = ("trl-default", "hf-bf16-eager", "ours")
TECHNIQUES = ("hf-bf16-eager", *OURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one contestant did."""

    name: str
    samples: int
    tokens: int
    seconds: float
    peak_mb: float
    epoch_tokens_per_second: list[float] = field(default_factory=list)
    held_out_loss: float = float("nan")

    @property
    def rate(self) -> float:
        """Sample tokens a second; of the last epoch where there are several."""
        return self.epoch_tokens_per_second[-1] if self.epoch_tokens_per_second else self.tokens / self.seconds


def main() -> None:
    """Run everything, or one contestant where a child process is told so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--techniques", action="store_true", help="compare our own switches instead")
    parser.add_argument("--only", default="", help="these contestants alone, by comma")
    parser.add_argument("--samples", type=int, default=0, help="samples to train on (96; quick: 8)")
    parser.add_argument("--max-length", type=int, default=0, help="tokens of a sample (256; quick: 96)")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--source", type=Path, help="a folder of source code (default: the package peft)")
    parser.add_argument("--child", choices=("prepare", "train", "judge"), help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    if arguments.child:
        _child(arguments)
        return
    _parent(arguments)


# --- The parent: one process after the other ------------------------------------------------------------------------


def _parent(arguments: argparse.Namespace) -> None:
    names = QUICK if arguments.quick else TECHNIQUES if arguments.techniques else MAIN
    if arguments.only:
        names = tuple(arguments.only.split(","))
    samples = arguments.samples or (8 if arguments.quick else 96)
    length = arguments.max_length or (96 if arguments.quick else 256)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def child(kind: str, name: str = "") -> dict[str, Any]:
            command = [sys.executable, __file__, "--child", kind, "--place", str(place), "--name", name]
            command += ["--samples", str(samples), "--max-length", str(length), "--base", arguments.base]
            command += ["--source", str(arguments.source)] if arguments.source else []
            command += ["--quick"] if arguments.quick else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"error: {kind} {name} ended with {done.returncode}")
            answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return answer

        prepared = child("prepare")
        data, machine = prepared["data"], prepared["machine"]
        _say(
            arguments,
            f"{data['samples']} samples, {data['tokens']:,} tokens, {data['targets']:,} of them targets; "
            f"bf16 matmul {machine['bf16_gflops']:.0f} GFLOP/s, {machine['threads']} threads",
        )
        results: dict[str, Figures] = {}
        for name in names:
            results[name] = Figures(**child("train", name))
            _say(arguments, f"{name}: {results[name].rate:.0f} tokens/s, {results[name].peak_mb:.0f} MB")
        losses = child("judge", ",".join(names))
    results = {n: Figures(**{**asdict(f), "held_out_loss": losses[n]}) for n, f in results.items()}
    summary = _summary(results, data, machine)
    if arguments.json:
        contestants = {name: asdict(figures) for name, figures in results.items()}
        details = {"machine": machine, "data": data, "contestants": contestants, "base_loss": losses["base"]}
        print(json.dumps(summary | details))
        return
    _print_table(results, losses["base"])
    for name, value in summary.items():
        print(f"{name}: {value if value is None else round(value, 4)}")


def _summary(
    results: dict[str, Figures], data: dict[str, Any], machine: dict[str, Any]
) -> dict[str, float | str | None]:
    stock = {n: f for n, f in results.items() if n in STOCK}
    best = max(stock.values(), key=lambda f: f.rate, default=None)
    ours, prefix, default = results.get("ours"), results.get("ours-prefix"), results.get("trl-default")
    return {
        "speedup_vs_trl_default": ours.rate / default.rate if ours and default else None,
        "speedup_vs_best_stock": ours.rate / best.rate if ours and best else None,
        "speedup_prefix_vs_trl_default": prefix.rate / default.rate if prefix and default else None,
        "loss_difference": ours.held_out_loss / best.held_out_loss - 1 if ours and best else None,
        "mfu": ours.rate * data["flops"] / data["tokens"] / (1e9 * machine["bf16_gflops"]) if ours else None,
    }


def _print_table(results: dict[str, Figures], base_loss: float) -> None:
    said = STOCK | {name: text for name, (text, _) in OURS.items()}
    print(f"\n| contestant | tokens/s | peak MB | held-out loss (base {base_loss:.4f}) |\n|---|---:|---:|---:|")
    for name, figures in results.items():
        print(f"| {said[name]} | {figures.rate:.0f} | {figures.peak_mb:.0f} | {figures.held_out_loss:.4f} |")
    print()


def _say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


# --- The children ---------------------------------------------------------------------------------------------------


def _child(arguments: argparse.Namespace) -> None:
    kind, place, name = arguments.child, arguments.place, arguments.name
    if kind == "prepare":
        answer = {"data": _prepare(arguments, place), "machine": _machine()}
    elif kind == "judge":
        answer = _judge(place, name.split(","))
    elif name in OURS:
        answer = _train_ours(place, name)
    else:
        answer = _train_stock(place, name)
    print(json.dumps(answer))


def _prepare(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Cut the source into samples, save the base as a plain folder and the samples as token ids in batches."""
    from neuralforge.data.batch import epoch_batches
    from neuralforge.data.gather import gather
    from neuralforge.data.jsonl import write_examples
    from neuralforge.data.tokens import tokenize
    from neuralforge.models.load import load_base_model

    source = arguments.source or Path(str(importlib.util.find_spec("peft").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    held_out = 4 if arguments.quick else 32
    dataset = gather(sources=[source], max_samples=arguments.samples, max_eval_samples=held_out, seed=SEED)
    base = load_base_model(arguments.base, device="cpu")

    def rows(examples: Any) -> list[dict[str, Any]]:
        tokens = tokenize(examples, base.tokenizer, max_length=arguments.max_length, end_token_id=base.end_token_id)
        return [{"tokens": list(e.tokens), "start": e.start} for e in tokens]

    train, evaluation = rows(dataset.train), rows(dataset.evaluation)
    tokens = tokenize(dataset.train, base.tokenizer, max_length=arguments.max_length, end_token_id=base.end_token_id)
    order = [i for batch in epoch_batches(tokens, batch_size=BATCH, seed=SEED, epoch=0) for i in batch]
    (place / "data.json").write_text(json.dumps({"train": train, "order": order, "evaluation": evaluation}))
    base.model.save_pretrained(place / "base")
    base.tokenizer.save_pretrained(place / "base")
    write_examples(place / "train.jsonl", dataset.train)
    facts = {"name": arguments.base, "max_length": arguments.max_length, "samples": len(train)}
    (place / "base.json").write_text(json.dumps(facts))
    config = base.model.config
    blocks = sum(p.numel() for n, p in base.model.named_parameters() if ".layers." in n and p.dim() == 2)
    count = sum(len(row["tokens"]) for row in train)
    targets = sum(len(row["tokens"]) - row["start"] for row in train)
    heads = config.num_attention_heads * config.hidden_size // config.num_attention_heads
    # Frozen weights: a multiply and an add forward, the same backward. Scores and values of attention: 4·L²·H·D
    # forward (PaLM's count, no causal half), twice that backward. The head for targets alone.
    flops = 4 * blocks * count + 4 * config.vocab_size * config.hidden_size * targets
    flops += sum(12 * len(row["tokens"]) ** 2 * heads for row in train) * config.num_hidden_layers
    return {"samples": len(train), "tokens": count, "targets": targets, "flops": float(flops)}


def _machine() -> dict[str, Any]:
    """The rate of a large bf16 matrix product, best of five."""
    import torch

    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return {"bf16_gflops": 2 * 2048**3 / best / 1e9, "threads": torch.get_num_threads()}


def _train_ours(place: Path, name: str) -> dict[str, Any]:
    from neuralforge.models.load import load_base_model
    from neuralforge.training.events import Event, StepDone
    from neuralforge.training.trainer import LoRATrainer

    options = dict(OURS[name][1])
    epochs, top = int(options.pop("epochs", 1)), options.pop("top", None)
    facts = json.loads((place / "base.json").read_text())
    base = load_base_model(facts["name"], device="cpu")
    layers = int(base.model.config.num_hidden_layers * top) if top else None
    trainer = LoRATrainer(
        base, rank=RANK, alpha=ALPHA, learning_rate=RATE, batch_size=BATCH, seed=SEED,
        max_length=facts["max_length"], top_layers_only=layers, **options,
    )  # fmt: skip
    steps: list[StepDone] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    began = time.perf_counter()
    trainer.train(place / "train.jsonl", epochs=epochs, warmup_steps=WARMUP, checkpoint_steps=0, observers=[watch])
    seconds = time.perf_counter() - began
    trainer.peft.save_pretrained(place / name)
    per_epoch = len(steps) // epochs
    rates = [
        sum(s.tokens for s in part) / sum(s.seconds for s in part)
        for part in (steps[i : i + per_epoch] for i in range(0, len(steps), per_epoch))
    ]
    return _figures(name, facts["samples"] * epochs, sum(s.tokens for s in steps), seconds, rates if epochs > 1 else [])


def _train_stock(place: Path, name: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    data = json.loads((place / "data.json").read_text())
    # The very batches that ours takes: similar lengths together, which spares the others padding.
    rows = [data["train"][i] for i in data["order"]]
    tokenizer: Any = AutoTokenizer.from_pretrained(place / "base")
    attention = "eager" if name.endswith("eager") else "sdpa"
    dtype = torch.float32 if name in ("trl-default", "hf-fp32") else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(place / "base", dtype=dtype, attn_implementation=attention)
    lora: Any = LoraConfig
    config = lora(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", bias="none", task_type="CAUSAL_LM")
    steps = -(-len(rows) // BATCH)
    warmup = WARMUP if steps >= 2 * WARMUP else steps // 10  # as ours cuts it
    common: dict[str, Any] = {
        "output_dir": str(place / "out"), "per_device_train_batch_size": BATCH, "num_train_epochs": 1,
        "learning_rate": RATE, "warmup_steps": warmup,
        "lr_scheduler_type": "linear", "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "use_cpu": True, "seed": SEED, "train_sampling_strategy": "sequential", "disable_tqdm": True,
    }  # fmt: skip
    if name.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        mask = [[0] * row["start"] + [1] * (len(row["tokens"]) - row["start"]) for row in rows]
        dataset = Dataset.from_dict({"input_ids": [row["tokens"] for row in rows], "completion_mask": mask})
        extra = {} if name == "trl-default" else {"gradient_checkpointing": False, "bf16": False}
        trainer: Any = SFTTrainer(
            model=model, args=SFTConfig(**common, **extra), train_dataset=dataset, processing_class=tokenizer,
            peft_config=config,
        )  # fmt: skip
    else:

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            width = max(len(row["input_ids"]) for row in batch)
            padded = [
                (
                    r["input_ids"] + [0] * (width - len(r["input_ids"])),
                    r["labels"] + [-100] * (width - len(r["labels"])),
                )
                for r in batch
            ]
            ids, labels = torch.tensor([i for i, _ in padded]), torch.tensor([label for _, label in padded])
            mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in batch])
            return {"input_ids": ids, "labels": labels, "attention_mask": mask}

        labels = [[-100] * row["start"] + row["tokens"][row["start"] :] for row in rows]
        dataset = Dataset.from_dict({"input_ids": [row["tokens"] for row in rows], "labels": labels})
        peft = get_peft_model(model, config)
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # as ours: frozen weights in bf16, LoRA in fp32
        trainer = Trainer(model=peft, args=TrainingArguments(**common), train_dataset=dataset, data_collator=collate)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(place / name)
    return _figures(name, len(rows), sum(len(row["tokens"]) for row in rows), seconds, [])


def _figures(name: str, samples: int, tokens: int, seconds: float, rates: list[float]) -> dict[str, Any]:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * (1 if sys.platform == "linux" else 1 / 1024)
    return asdict(
        Figures(name=name, samples=samples, tokens=tokens, seconds=seconds, peak_mb=peak, epoch_tokens_per_second=rates)
    )


def _judge(place: Path, names: list[str]) -> dict[str, float]:
    """Mean held-out loss of the base and of each adapter: plain transformers and PEFT, one sample at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = json.loads((place / "data.json").read_text())["evaluation"]
    base: Any = AutoModelForCausalLM.from_pretrained(
        place / "base", dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    model: Any = PeftModel.from_pretrained(base, str(place / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(place / name), adapter_name=name)

    @torch.no_grad()
    def loss() -> float:
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["tokens"]])
            kept = len(row["tokens"]) - row["start"] + 1
            logits = model(input_ids=ids, logits_to_keep=kept).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, row["start"] :], reduction="sum"))
            count += len(row["tokens"]) - row["start"]
        return total / count

    losses = {}
    with model.disable_adapter():
        losses["base"] = loss()
    for name in names:
        model.set_adapter(name)
        losses[name] = loss()
    return losses


if __name__ == "__main__":
    main()
