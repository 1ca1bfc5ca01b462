"""The README.md of an adapter: a model card as the model hubs read it, that says only what the metadata knows."""

import json
import re
import shlex

import yaml

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.lineage import Composition, Predecessor
from neuralforge_common.metadata import AdapterMetadata, Scores
from neuralforge_common.privacy import Level, PrivacyStatement

_PIPELINES = {"causal": "text-generation", "seq2seq": "text2text-generation"}
_MODEL_CLASSES = {"causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
_UNITS: dict[Level, str] = {
    "sample": "example",
    "file": "file",
    "repository": "repository",
    "client": "participant",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


def model_card(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    """The whole card, in Markdown with YAML front matter."""
    sections = [
        f"# {_escape(metadata.name)}",
        f"## What it does\n\n{metadata.description.strip() or _what_it_does(metadata, spec)}",
        f"## Best for\n\n{_best_for(metadata, spec)}",
        *([f"## Made of\n\n{_made_of(metadata.composition, metadata.parent)}"] if metadata.composition else []),
        f"## Training data\n\n{_training_data(metadata)}",
        f"## Evaluation\n\n{_evaluation(metadata)}",
        f"## How to load\n\n{_how_to_load(metadata, spec)}",
    ]
    return f"---\n{_front_matter(metadata, spec)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    matter: dict[str, object] = {}
    # A hub takes a repository's id here; a friendly name or a folder on somebody's disk would not be one.
    base = next((name for name in (spec.base, metadata.base_model) if _HUB_ID.fullmatch(name)), None)
    if base:
        matter |= {"base_model": base, "base_model_relation": "adapter"}
    matter["library_name"] = "peft"
    if metadata.license:
        matter["license"] = metadata.license.lower()
    matter["tags"] = ["lora", "code", "code-completion", "neuralforge"]
    matter["pipeline_tag"] = _PIPELINES[spec.task]
    # The dumper quotes whatever could end a text or start another key.
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=1000)


def _what_it_does(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    if metadata.composition is not None:
        return f"Joins what {len(metadata.composition.parents)} adapters of {_base(metadata, spec)} have learnt."
    return f"Completes code in the style of the code that it was trained on, as an adapter of {_base(metadata, spec)}."


def _best_for(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    lines = [f"- Completing code with {_base(metadata, spec)}, and with no other base: the weights fit only that one"]
    if metadata.evaluation is None and metadata.privacy is not None:
        lines.append("- Code like that of its training data; no figures are published")
    elif metadata.evaluation is None:
        lines.append("- Nothing else is known: it has not been evaluated")
    else:
        lines.append("- Code like that of its training data; it was measured on nothing else")
    return "\n".join(lines)


def _made_of(composition: Composition, parent: Predecessor | None) -> str:
    learnt = composition.learnt_on
    chosen = f"learnt on {learnt:,} samples" if learnt else "chosen by whoever composed it"
    afterwards = "not trained" if parent is None else "and then trained"
    rows = [
        f"Composed, {afterwards}: {_escape(composition.method)}. The weights were {chosen}.",
        "",
        "| Adapter | Version | Weight | SHA-256 of its weights |",
        "|---|---|---|---|",
    ]
    for part in composition.parents:
        name, version = (_escape(text).replace("|", "\\|") for text in (part.name, part.version))
        rows.append(f"| {name} | {version} | {part.weight:g} | `{part.digest}` |")
    return "\n".join(rows)


def _training_data(metadata: AdapterMetadata) -> str:
    lines = []
    if metadata.composition is not None:
        lines.append("- What its parents learnt from, see their own cards")
    if metadata.parent is not None:
        name, version = _escape(metadata.parent.name), _escape(metadata.parent.version)
        lines.append(
            f"- What {name} {version} had learnt, weights `{metadata.parent.digest}`: training went on from it"
        )
    if metadata.training_samples is not None:
        lines.append(f"- {metadata.training_samples:,} samples of code")
    if metadata.dataset_digest:
        lines.append(f"- SHA-256 of the data set: `{_code(metadata.dataset_digest)}`")
    if metadata.privacy is not None:
        lines.append(f"- {_privacy(metadata.privacy)}")
    lines.append("- The data itself is not part of this adapter" if lines else "- Not recorded")
    return "\n".join(lines)


def _privacy(statement: PrivacyStatement) -> str:
    """The promise in one sentence, with its unit; what the data were like otherwise is no part of the card."""
    unit = _UNITS[statement.unit]
    note = f". {_escape(statement.note)}" if statement.note else ""
    return (
        f"Learnt with differential privacy, {statement}: with or without any one {unit} among the data, no outcome "
        f"is more than e^{statement.epsilon:.3g} times as likely, except with probability {statement.delta:g}{note}"
    )


def _evaluation(metadata: AdapterMetadata) -> str:
    evaluation = metadata.evaluation
    if evaluation is None and metadata.composition is not None:
        return "Not evaluated. The figures of its parents say nothing of what they are together."
    if evaluation is None and metadata.privacy is not None:
        return "Not published: how it does on the team's own code would tell of that code."
    if evaluation is None:
        return "Not evaluated."
    where = f"{evaluation.samples:,} held-out samples" if evaluation.samples else "held-out samples"
    rows = [
        f"On {where}, completion tokens only; lower perplexity and higher accuracy are better.",
        "",
        "| Metric | Base | Adapter |",
        "|---|---|---|",
        f"| Perplexity | {_perplexity(evaluation.base)} | {_perplexity(evaluation.adapter)} |",
        f"| Token accuracy | {_accuracy(evaluation.base)} | {_accuracy(evaluation.adapter)} |",
    ]
    return "\n".join(rows)


def _how_to_load(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    folder = f"{metadata.name}.lora"
    model_class = _MODEL_CLASSES[spec.task]
    revision = f", revision={_literal(spec.base_revision)}" if spec.base_revision else ""
    base = _literal(spec.base or metadata.base_model or "the base model")
    facts = [
        f"- Base: {_base(metadata, spec)}",
        f"- LoRA: rank {spec.rank}, alpha {spec.alpha:g}, on {', '.join(spec.target_modules)}",
    ]
    if spec.layers is not None:
        facts.append(f"- Only layers {spec.layers[0]} to {spec.layers[-1]} ({len(spec.layers)} of them)")
    if spec.base_fingerprint:
        facts.append(f"- Fingerprint of the base: `{_code(spec.base_fingerprint)}`")
    python = [
        "from peft import PeftModel",
        f"from transformers import {model_class}",
        "",
        f"base = {model_class}.from_pretrained({base}{revision})",
        f"model = PeftModel.from_pretrained(base, {_literal('./' + folder)})",
    ]
    return "\n".join(
        [
            *facts,
            "",
            "```bash",
            f"neuralforge test-adapter {shlex.quote('./' + folder)}",
            "```",
            "",
            "Plain PEFT loads it as well; it does not check that the base is the right one:",
            "",
            "```python",
            *python,
            "```",
        ]
    )


def _base(metadata: AdapterMetadata, spec: AdapterSpec) -> str:
    name = metadata.base_model or spec.base
    return f"`{_code(name)}`" if name else "its base model"


def _perplexity(scores: Scores) -> str:
    return "not measured" if scores.perplexity is None else f"{scores.perplexity:.2f}"


def _accuracy(scores: Scores) -> str:
    return "not measured" if scores.accuracy is None else f"{scores.accuracy:.1%}"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", text)


def _literal(text: str) -> str:
    # Not escaped: JSON writes a character beyond U+FFFF as two halves, which are two characters to Python.
    return json.dumps(text, ensure_ascii=False)


def _code(text: str) -> str:
    return text.replace("`", "'")
