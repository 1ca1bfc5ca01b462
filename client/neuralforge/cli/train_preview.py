"""`train --dry-run`: what would be done and what it would take, without the base and without the network."""

from __future__ import annotations

from rich.table import Table

from neuralforge.cli.console import plain_console
from neuralforge.cli.focusing import focus_line, focus_of, wanted_detectors
from neuralforge.cli.present import dataset_table
from neuralforge.cli.private_session import preview_private
from neuralforge.cli.train_settled import print_notices, settled
from neuralforge.data.configured import read_dataset
from neuralforge.data.git import NothingChanged
from neuralforge_common.config.load import flatten

CHARACTERS_PER_TOKEN = 3.3
"""Of code, for estimates made without a tokenizer."""


def dry_run(file: str | None, overrides: dict[str, object]) -> int:
    """Print the resolved configuration and what it would take; needs neither the base nor the network."""
    console = plain_console()
    resolved = settled(file, overrides)
    config = resolved.config
    wanted_detectors(config)
    table = Table(title="configuration", title_justify="left")
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for key, value in flatten(config).items():
        table.add_row(key, "" if value is None else str(value), str(resolved.origins[key]))
    console.print(table)
    try:
        dataset = read_dataset(config)
    except NothingChanged as nothing:
        console.print(f"{nothing.message}: there is nothing to learn")
        return 0
    if config.federation.server is not None:
        from neuralforge.cli.federated_session import preview

        preview(resolved, dataset, console)
        return 0
    print_notices(resolved, console)
    console.print(dataset_table(dataset.report))
    if (focus := focus_of(config, dataset)) is not None:
        console.print(focus_line(focus))
    training = config.training
    if config.privacy.enabled:
        preview_private(config, dataset, console)
        return 0
    if config.tasks.shares:
        from neuralforge.cli.task_shares import as_tasks

        dataset = as_tasks(dataset, config.tasks.shares)
    batches = -(-len(dataset.train) // training.batch_size)
    per_epoch = -(-batches // training.gradient_accumulation_steps)
    steps = min(per_epoch * training.epochs, training.max_steps or per_epoch * training.epochs)
    characters = sum(min(len(e.context) + len(e.completion), 4 * config.dataset.max_length) for e in dataset.train)
    tokens = characters / CHARACTERS_PER_TOKEN * steps / per_epoch
    console.print(
        f"{len(dataset.train):,} examples, {len(dataset.evaluation):,} held out; {per_epoch:,} steps an epoch, "
        f"{steps:,} steps in all, about {tokens:,.0f} tokens\nthe adapter would go to {config.adapter_path}"
    )
    return 0
