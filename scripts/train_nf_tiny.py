"""Train nf-tiny, the small code model that ships inside the package, on Python's own standard library.

The standard library is permissively licensed (PSF-2.0) and lies on every machine that has Python. A byte-level BPE
tokenizer and a Llama-style model of about three million parameters are trained on it from nothing; some files are
held out by a hash of their names, and the result is judged on them in bits per character, which can be compared
across tokenizers.

    python scripts/train_nf_tiny.py --output nf_tiny --steps 1300 --seed 0 --threads 2 --compile
    python scripts/train_nf_tiny.py --output pilot --minutes 1
"""

import argparse
import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# These are not typed where we call them.
_llama_config: Any = LlamaConfig
_generation_config: Any = GenerationConfig
_fast_tokenizer: Any = PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
HELD_OUT_PERCENT = 3
WINDOW = 512

# Tests repeat the code that they test; encodings, pydoc_data and the rest are generated tables, not code.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3", "encodings", "pydoc_data"}
)
SKIPPED_FILES = ("html/entities.py", "_sysconfigdata", "this.py", "tkinter/keysyms", "__phello__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The texts to learn from and those held out, each in the order of their names."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_corpus(root: Path) -> Corpus:
    """Read every Python file under `root` that is code, and hold some out by the hash of its name."""
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1]) or name.startswith(SKIPPED_FILES):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        bucket = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 100
        if text.strip():
            (held_out if bucket < HELD_OUT_PERCENT else train).append(text)
    return Corpus(train=tuple(train), held_out=tuple(held_out))


def train_tokenizer(texts: tuple[str, ...]) -> Tokenizer:
    """Learn a byte-level BPE in which every digit is its own token, as in SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def build_model(seed: int) -> LlamaForCausalLM:
    """Make the untrained model; its shape is a choice of this file, its weights follow from the seed."""
    torch.manual_seed(seed)
    config = _llama_config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="eager",  # measured: bf16 SDPA on a CPU is slower than batched products
    )
    return LlamaForCausalLM(config)


def batches(stream: torch.Tensor, *, window: int, tokens: int, seed: int) -> Iterator[torch.Tensor]:
    """Cut the stream into shuffled windows, for ever; each epoch cuts at another offset. Shape (n, window + 1)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(window, (), generator=generator))
        count = (len(stream) - offset - 1) // window
        size = max(1, tokens // window)
        starts = (offset + torch.randperm(count, generator=generator) * window).tolist()
        for first in range(0, count // size * size, size):
            yield torch.stack([stream[start : start + window + 1] for start in starts[first : first + size]])


def learning_rate(progress: float, *, peak: float, warmup: float = 0.03, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `floor` of the peak; `progress` runs from 0 to 1."""
    if progress < warmup:
        return peak * (progress + 1e-3) / warmup
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))))


def train(model: LlamaForCausalLM, stream: torch.Tensor, arguments: argparse.Namespace) -> int:
    """Train in place with bf16 weights and fp32 masters; returns the number of steps taken."""
    masters = [parameter.detach().clone().float() for parameter in model.parameters()]
    model.to(torch.bfloat16).train()  # measured: pure bf16 with fp32 masters is faster than autocast and than fp32
    names = [name for name, _ in model.named_parameters()]
    hidden = [master for name, master in zip(names, masters, strict=True) if master.ndim == 2 and "embed" not in name]
    others = [master for name, master in zip(names, masters, strict=True) if master.ndim == 1 or "embed" in name]
    # Measured, one minute each: held-out 2.36 bits per character, and 2.72 with AdamW for every parameter.
    optimizers: tuple[Any, ...] = (
        torch.optim.Muon(hidden, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    )
    forward = torch.compile(model, dynamic=False) if arguments.compile else model
    started, smoothed = time.monotonic(), 0.0
    # Short windows first: they cost less and teach the same words. The last third learns to use a long context.
    short = batches(stream, window=WINDOW // 2, tokens=arguments.batch_tokens, seed=arguments.seed)
    long = batches(stream, window=WINDOW, tokens=arguments.batch_tokens, seed=arguments.seed + 1)
    for step in range(arguments.steps or 10**9):
        elapsed = time.monotonic() - started
        progress = step / arguments.steps if arguments.steps else elapsed / (60 * arguments.minutes)
        if progress >= 1:
            return step
        batch = next(short if progress < 0.66 else long)
        logits = forward(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        for parameter, master in zip(model.parameters(), masters, strict=True):
            if parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, peak=arguments.learning_rate)
            optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)
        smoothed = loss.item() if step == 0 else 0.95 * smoothed + 0.05 * loss.item()
        if step % 50 == 0:
            rate = (step + 1) * arguments.batch_tokens / max(time.monotonic() - started, 1e-9)
            print(f"step {step:5d}  {elapsed:6.0f} s  loss {smoothed:.4f}  {rate:7.0f} tokens/s", flush=True)
    return int(arguments.steps)


@torch.no_grad()
def bits_per_character(model: LlamaForCausalLM, tokenizer: Tokenizer, texts: tuple[str, ...]) -> float:
    """Bits that the model spends on each character of `texts`; each file starts anew, in windows of 512 tokens."""
    model.to(torch.float32).eval()
    bits, characters = 0.0, 0
    for text in texts:
        tokens = torch.tensor([0, *tokenizer.encode(text).ids])
        for start in range(0, len(tokens) - 1, WINDOW):
            window = tokens[start : start + WINDOW + 1]
            logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
            bits += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
        characters += len(text)
    return bits / characters


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Write the folder that transformers loads, in bfloat16."""
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.config._attn_implementation = "sdpa"
    model.generation_config = _generation_config(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(output)
    _fast_tokenizer(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(output)


def main() -> None:
    """Train, save and print the held-out bits per character as one line of JSON."""
    parser = argparse.ArgumentParser(description="Train nf-tiny on Python's standard library.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, default=0, help="exact length: the same seed gives the same model")
    length.add_argument("--minutes", type=float, default=0.0, help="length by the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile: 1.5 times as fast after two minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = read_corpus(Path(sysconfig.get_path("stdlib")))
    tokenizer = train_tokenizer(corpus.train)
    ids = [token for encoding in tokenizer.encode_batch(list(corpus.train)) for token in (0, *encoding.ids)]
    print(f"{len(corpus.train)} files, {len(ids)} tokens; {len(corpus.held_out)} files held out", flush=True)
    model = build_model(arguments.seed)
    started, cpu = time.monotonic(), time.process_time()
    steps = train(model, torch.tensor(ids), arguments)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    save(model, tokenizer, arguments.output)
    result = {
        "held_out_bits_per_character": round(bits_per_character(model, tokenizer, corpus.held_out), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "held_out_characters": sum(map(len, corpus.held_out)),
        "train_characters": sum(map(len, corpus.train)),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
