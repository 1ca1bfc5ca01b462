"""What a private step costs: CPU time and memory against plain PEFT, Opacus' hooks and Opacus' ghost clipping.

Every contestant takes the same batches of the same samples through the same base and LoRA, with AdamW, in a process
of its own, one after the other. Time is CPU seconds of all threads, so that a neighbour on the machine disturbs less;
memory is the peak resident set of the steps above that of the loaded model. Then, in fp32, a clipped sum of ours
against a loop over single samples by plain transformers, PEFT and autograd.

    python benchmarks/privacy_cost.py                    about 15 minutes on two cores
    python benchmarks/privacy_cost.py --quick            under 50 seconds, a rough figure
    python benchmarks/privacy_cost.py --quick --json

Data: the sources of the installed package peft. fast-differential-privacy is not among the contestants: the package
index that this was written with does not have it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEED, RANK, ALPHA, RATE, BATCH, CLIP, SIGMA = 0, 8, 16.0, 3e-3, 4, 1.0, 1.0
CONTESTANTS = {
    "plain-peft": "PEFT + AdamW, bf16 weights, eager attention, token-mean loss: not private",
    "opacus-hooks": "the same with Opacus GradSampleModule and DPOptimizer",
    "opacus-ghost": "the same with Opacus ghost clipping",
    "ours": "NeuralForge, a private step",
    "ours-frozen-a": "NeuralForge, a private step, A frozen",
    "ours-one-by-one": "NeuralForge, a private step, one sample through the model at a time",
    "ours-general": "NeuralForge, a private step by autograd (the general engine)",
    "ours-not-private": "NeuralForge, its plain step",
}
QUICK = ("plain-peft", "opacus-hooks", "ours")
ABSENT = "fast-differential-privacy: not on this package index, not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU seconds a step, and megabytes of the steps above the loaded model."""

    seconds: float
    extra_mb: float


def main() -> None:
    """Run everything, or one contestant where a child process is told so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--only", default="", help="these contestants alone, by comma")
    parser.add_argument("--steps", type=int, default=0, help="steps to measure after a first one (12; quick: 1)")
    parser.add_argument("--max-length", type=int, default=0, help="tokens of a sample (256; quick: 96)")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--targets", default="auto", help="modules with LoRA, by comma (auto: all linear)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (1 if arguments.quick else 12)
    arguments.max_length = arguments.max_length or (96 if arguments.quick else 256)
    # Threads that wait by spinning would count as work.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_WAIT_POLICY="passive")
    if arguments.child:
        # Opacus' hooks on a frozen embedding: true, said at every step, and nothing to do about.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        print(json.dumps(_child(arguments)))
        return
    _parent(arguments)


def _parent(arguments: argparse.Namespace) -> None:
    names = arguments.only.split(",") if arguments.only else QUICK if arguments.quick else list(CONTESTANTS)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.json"

        def child(kind: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--child", kind, "--data", str(data), "--base", arguments.base]
            command += ["--steps", str(arguments.steps), "--max-length", str(arguments.max_length)]
            command += ["--targets", arguments.targets] + (["--quick"] if arguments.quick else [])
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"error: {kind} ended with {done.returncode}")
            answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return answer

        prepared = child("prepare")
        facts = prepared["data"]
        _say(arguments, f"{facts['samples']} samples, {facts['tokens']:,} tokens, batches of {BATCH}")
        costs = {}
        for name in names:
            costs[name] = Cost(**child(name))
            _say(arguments, f"{name}: {costs[name].seconds:.2f} CPU s a step, {costs[name].extra_mb:.0f} MB")
    plain, ours = costs.get("plain-peft"), costs.get("ours")
    summary = {
        "time_ratio_vs_plain_peft": ours.seconds / plain.seconds if ours and plain else None,
        "extra_memory_ratio_vs_plain_peft": ours.extra_mb / plain.extra_mb if ours and plain else None,
        **prepared["exact"],
    }
    if arguments.json:
        contestants = {name: asdict(cost) for name, cost in costs.items()}
        print(json.dumps(summary | {"contestants": contestants, "data": facts, "absent": ABSENT}))
        return
    print("\n| contestant | CPU s/step | × plain | extra MB | × plain |\n|---|---:|---:|---:|---:|")
    for name, cost in costs.items():
        of = plain or cost
        ratios = f"{cost.seconds / of.seconds:.2f} | {cost.extra_mb:.0f} | {cost.extra_mb / of.extra_mb:.2f}"
        print(f"| {CONTESTANTS[name]} | {cost.seconds:.2f} | {ratios} |")
    print(f"\n{ABSENT}")
    for name, value in summary.items():
        print(f"{name}: {value if value is None else f'{value:.3g}'}")


def _say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


# --- The children ---------------------------------------------------------------------------------------------------


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.child == "prepare":
        return {"data": _prepare(arguments), "exact": _exact(arguments)}
    step, peak = _contestant(arguments.child, arguments)
    batches = _batches(arguments.data)
    step(batches[0])
    began = time.process_time()
    for batch in batches[1 : arguments.steps + 1]:
        step(batch)
    return asdict(Cost(seconds=(time.process_time() - began) / arguments.steps, extra_mb=peak()))


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cut the source into samples and write them as token ids, in batches of like length."""
    from neuralforge.data.batch import epoch_batches
    from neuralforge.data.gather import gather
    from neuralforge.data.tokens import tokenize
    from neuralforge.models.load import load_base_model

    source = Path(str(importlib.util.find_spec("peft").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    dataset = gather(sources=[source], max_samples=BATCH * (arguments.steps + 1), max_eval_samples=1, seed=SEED)
    base = load_base_model(arguments.base, device="cpu")
    rows = tokenize(dataset.train, base.tokenizer, max_length=arguments.max_length, end_token_id=base.end_token_id)
    order = epoch_batches(rows, batch_size=BATCH, seed=SEED, epoch=0)
    batches = [[{"tokens": rows[i].tokens, "start": rows[i].start} for i in batch] for batch in order]
    arguments.data.write_text(json.dumps(batches))
    return {"samples": len(rows), "tokens": sum(e.length for e in rows), "max_length": arguments.max_length}


def _batches(data: Path) -> list[Any]:
    from neuralforge.data.batch import Batch
    from neuralforge.data.tokens import TokenizedExample

    return [
        Batch(
            examples=tuple(
                TokenizedExample(index=BATCH * i + j, tokens=tuple(row["tokens"]), start=row["start"])
                for j, row in enumerate(rows)
            )
        )
        for i, rows in enumerate(json.loads(data.read_text()))
    ]


def _adapted(arguments: argparse.Namespace, dtype: str) -> Any:
    from neuralforge.models.load import load_base_model
    from neuralforge.models.lora import attach_lora
    from neuralforge.models.targets import resolve_targets
    from neuralforge_common.adapter import AdapterSpec

    base = load_base_model(arguments.base, dtype=dtype, device="cpu")
    asked = arguments.targets if arguments.targets == "auto" else arguments.targets.split(",")
    names = resolve_targets(base.model, asked).names
    spec = AdapterSpec(base=base.name, rank=RANK, alpha=ALPHA, target_modules=names, task="causal")
    model = attach_lora(base.model, spec, seed=SEED)
    for parameter in model.parameters():
        parameter.sum()  # weights that are mapped from a file are in memory only when they have been read
    return model


def _contestant(name: str, arguments: argparse.Namespace) -> tuple[Callable[[Any], None], Callable[[], float]]:
    """A step on a batch, and a call that gives the peak since the model was loaded, in MB above it."""
    import torch

    from neuralforge.privacy import step  # noqa: F401

    model = _adapted(arguments, "bf16")
    # What is imported late (AdamW brings torch's compiler in) is not what a step costs.
    torch.optim.AdamW([torch.zeros(1)])
    gc.collect()
    peak = _watch_memory()
    if name.startswith("ours"):
        return _ours(name, model), peak
    return _stock(name, model), peak


def _ours(name: str, model: Any) -> Callable[[Any], None]:
    import torch

    from neuralforge.privacy.step import Draw, Mechanism, PrivateGradient
    from neuralforge.training.engine import Engine, EngineOptions
    from neuralforge.training.fast.engine import FastEngine
    from neuralforge.training.flat import FlatParameters
    from neuralforge.training.general.engine import GeneralEngine
    from neuralforge_common.noise import standard_normal

    flat = FlatParameters(model)
    engine: Engine = (
        GeneralEngine(model, flat, EngineOptions(), is_encoder_decoder=False, pad_token_id=0)
        if name == "ours-general"
        else FastEngine(model, flat, EngineOptions())
    )
    optimizer = torch.optim.AdamW([flat.vector], lr=RATE, weight_decay=0.0, fused=True)
    drawn: list[Draw] = []

    class Given:
        """Draws the batch at hand: all contestants are to do the same work."""

        def draw(self, step: int) -> Sequence[Draw]:
            return drawn

    frozen = name == "ours-frozen-a"
    private = PrivateGradient(
        engine, flat, Given(), Mechanism(noise_multiplier=SIGMA, clip=CLIP, divisor=float(BATCH)),
        noise=standard_normal, chunk=1 if name == "ours-one-by-one" else BATCH, sides="B" if frozen else "AB",
        trainable=flat.mask("B") if frozen else None, examples=(), steps_per_epoch=1,
    )  # fmt: skip

    def step(batch: Any) -> None:
        if name == "ours-not-private":
            flat.gradient.zero_()
            engine.accumulate(batch, scale=1 / batch.targets, seed=0)
        else:
            drawn[:] = [Draw(unit=e.index, examples=(e,)) for e in batch.examples]
            private(0)
        optimizer.step()

    return step


def _stock(name: str, model: Any) -> Callable[[Any], None]:
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    model.get_base_model().set_attn_implementation("eager")
    model.train()  # Opacus' hooks do nothing in eval mode
    optimizer: Any = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    numbers: dict[str, Any] = {"noise_multiplier": SIGMA, "max_grad_norm": CLIP, "expected_batch_size": BATCH}
    run = model
    if name == "opacus-hooks":
        run, optimizer = GradSampleModule(model), DPOptimizer(optimizer, **numbers)
    elif name == "opacus-ghost":
        run = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(optimizer, **numbers)

    def step(batch: Any) -> None:
        ids, mask, labels = _padded(batch.examples)
        optimizer.zero_grad()
        if name == "plain-peft":
            run(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        else:
            # One loss a sample: of the model's own token-mean loss each sample would change the others' gradients.
            logits = run(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
            losses = losses / (labels[:, 1:] >= 0).sum(1)
            if name == "opacus-hooks":
                losses.mean().backward()
            else:
                DPTensorFastGradientClipping(run, optimizer, losses).backward()
        optimizer.step()

    return step


def _padded(examples: Sequence[Any]) -> tuple[Any, Any, Any]:
    import torch

    width = max(len(e.tokens) for e in examples)
    fill = [width - len(e.tokens) for e in examples]
    ids = torch.tensor([[*e.tokens, *[0] * n] for e, n in zip(examples, fill, strict=True)])
    mask = torch.tensor([[1] * len(e.tokens) + [0] * n for e, n in zip(examples, fill, strict=True)])
    ignored = -100
    labels = torch.tensor(
        [[*[ignored] * e.start, *e.tokens[e.start :], *[ignored] * n] for e, n in zip(examples, fill, strict=True)]
    )
    return ids, mask, labels


def _exact(arguments: argparse.Namespace) -> dict[str, float]:
    """The largest error of a clipped sum without noise, and its error relative to the sum's norm, in fp32."""
    import torch

    from neuralforge.privacy.step import Draw, Mechanism, PrivateGradient
    from neuralforge.training.engine import EngineOptions
    from neuralforge.training.fast.engine import FastEngine
    from neuralforge.training.flat import FlatParameters

    model = _adapted(arguments, "fp32")
    with torch.no_grad():  # at B = 0 the gradient of A is zero and proves nothing
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(SEED))
    flat = FlatParameters(model)
    examples = [e for batch in _batches(arguments.data)[: 1 if arguments.quick else 4] for e in batch.examples]
    gradients = []
    for example in examples:
        flat.gradient.zero_()
        ids, _, labels = _padded([example])
        logits = model(input_ids=ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, labels[0, 1:]).backward()
        gradients.append(flat.gradient.double())
    norms = torch.stack([g.norm() for g in gradients])
    clip = float(norms.median()) * 1.0001  # some are clipped, some are not
    expected = torch.stack([g * min(1.0, clip / float(n)) for g, n in zip(gradients, norms, strict=True)]).sum(0)

    class All:
        """Everybody, in every step."""

        def draw(self, step: int) -> Sequence[Draw]:
            return [Draw(unit=e.index, examples=(e,)) for e in examples]

    PrivateGradient(
        FastEngine(model, flat, EngineOptions()), flat, All(), Mechanism(noise_multiplier=0.0, clip=clip, divisor=1.0),
        noise=lambda count: torch.zeros(count).numpy(), chunk=BATCH, examples=examples, steps_per_epoch=1,
    )(0)  # fmt: skip
    error = flat.gradient.double() - expected
    return {"max_abs_error": float(error.abs().max()), "relative_error": float(error.norm() / expected.norm())}


def _watch_memory() -> Callable[[], float]:
    """A call that gives the peak of the resident set from now on, in MB above what it is now."""
    import psutil

    before = psutil.Process().memory_info().rss
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if sys.platform != "linux":
        import resource

        # Without a way to forget the peak of loading, it is the least that the steps can have taken.
        return lambda: (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    reset.write_text("5")

    def peak() -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return (int(line.split()[1]) * 1024 - before) / 1e6

    return peak


if __name__ == "__main__":
    main()
