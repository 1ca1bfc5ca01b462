"""What `train --server` does: join in the rounds of a federation until it is over."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

from neuralforge.cli.console import plain_console
from neuralforge.cli.present import dataset_table
from neuralforge.data.dataset import Dataset
from neuralforge.data.jsonl import write_examples
from neuralforge.data.run_folder import HELD_OUT_FILE, run_folder
from neuralforge.federation.home import JoinedFederation, client_home
from neuralforge.federation.membership import describe
from neuralforge_common.config.load import ResolvedConfig
from neuralforge_common.config.policy import load_site_policy
from neuralforge_common.config.schema import TrainConfig
from neuralforge_common.folder import read_adapter_folder
from neuralforge_common.metadata import Evaluation as Scored
from neuralforge_common.stop import StopRequest

OURS = (
    *("model.base", "model.revision", "model.trust_remote_code", "model.adapter_name", "output.directory"),
    *("training.device", "training.threads", "training.fp16", "training.precision", "training.int8"),
    *("training.engine", "training.attention", "training.context_gradients", "training.gradient_checkpointing"),
    *("training.cache_prefix", "training.seed"),
    *("optimization.ewc_lambda", "optimization.anchor", "optimization.replay_buffer_size"),
    *("optimization.replay_ratio", "optimization.replay_balance", "optimization.key_file"),
    *("privacy.enabled", "privacy.target_epsilon", "privacy.delta", "privacy.unit", "privacy.engine"),
    "privacy.max_unit_examples",
)
"""Beside the data and `federation:`, what a client says for itself; the rest of a round is the coordinator's to say."""


def take_part(resolved: ResolvedConfig, *, log_level: str) -> int:
    """Take part until the federation is over; returns the exit status."""
    console = plain_console(soft_wrap=not sys.stdout.isatty())
    logging.basicConfig(level=log_level)
    config = resolved.config
    for notice in (*resolved.notices, *_not_ours(resolved)):
        console.print(notice)
    joined = _joined(config)
    with _status(console, f"asking {joined.record.host}"):
        description = describe(joined)
    console.print(
        f"federation {description.federation} at nf://{joined.record.address.endpoint}, "
        f"here {description.name}; server {description.server_version}"
    )
    with _status(console, "loading torch"):
        from neuralforge.cli.federated_progress import RoundProgress
        from neuralforge.data.configured import read_dataset
        from neuralforge.federation.app import make_client_app
        from neuralforge.federation.connection import FINISH, Asked, Event, Resident
        from neuralforge.federation.flower import Stopped
        from neuralforge.federation.prepare import make_participant
        from neuralforge.federation.secagg.member import member_of
        from neuralforge.federation.session import open_session
        from neuralforge.privacy.scope import federation_scope
    dataset = read_dataset(config)
    console.print(dataset_table(dataset.report))
    with StopRequest().listening() as stop, ExitStack() as stack:
        progress = RoundProgress(console)
        stack.callback(progress.close)
        participant = make_participant(
            resolved,
            memory=joined.memory,
            tell=progress.say,
            dataset=dataset,
            member=member_of(joined),
            scope=federation_scope(joined.record.federation, joined.record.address.endpoint),
            observers=(progress.training,),
            stop=stop,
        )
        progress.private = participant.private
        if participant.resident.name is not None:  # found out now, not in the first round
            base = participant.resident.base(participant.resident.name)
            progress.say(f"base {base.name}: {base.parameters / 1e6:,.0f} M parameters, {base.family}")

        def observe(event: Event) -> None:
            if isinstance(event, Asked) and event.kind == FINISH:
                # Never beside an adapter that learnt from it, as an older one might have.
                _held_out(config).unlink(missing_ok=True)
            progress.rounds(event)

        app = make_client_app(lambda context: participant, on_fault=progress.fault)
        try:
            with open_session(joined, tell=progress.say, stop=stop, description=description) as fleet:
                progress.say("online; waiting for the coordinator")
                progress.start()
                ended = Resident(fleet, app, observe=observe, tell=progress.say, stop=stop).stay()
        except Stopped:
            ended = "stopped"
    if ended == "stopped":
        again = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        console.print(f"stopped, and the server knows\nto go on: {again}", soft_wrap=True)
        return 128 + (stop.signal or signal.SIGINT)
    if progress.finish_fault is not None:
        raise progress.finish_fault
    _finish(config, dataset, participant.scores, console)
    return 0


def preview(resolved: ResolvedConfig, dataset: Dataset, console: Console) -> None:
    """What a dry run says of a federation; the server is not asked."""
    joined = _joined(resolved.config)
    for notice in _not_ours(resolved):
        console.print(notice)
    console.print(
        f"{len(dataset.train):,} examples, {len(dataset.evaluation):,} held out; joined {joined.record.federation} at "
        f"nf://{joined.record.address.endpoint} as {joined.record.name}, whose coordinator says how many steps\n"
        f"the adapter would go to {resolved.config.adapter_path}",
        soft_wrap=True,
    )


def _joined(config: TrainConfig) -> JoinedFederation:
    from neuralforge.federation.session import find_federation

    if config.federation.policy:
        load_site_policy(config.federation.policy)  # what is wrong with it is said now, before anybody is asked
    return find_federation(config.federation.server, home=config.federation.home or client_home())


def _not_ours(resolved: ResolvedConfig) -> list[str]:
    given = [
        key
        for key, origin in resolved.origins.items()
        if origin.kind != "default"
        and key not in OURS
        and (not key.startswith(("dataset.", "federation.")) or key == "dataset.max_length")
    ]
    return [f"{', '.join(given)}: not used here, the coordinator says how a round is trained"] if given else []


def _finish(config: TrainConfig, dataset: Dataset, scores: Scored | None, console: Console) -> None:
    from neuralforge.cli.progress import before_and_after
    from neuralforge.evaluation.metrics import Evaluation

    path = config.adapter_path
    if dataset.evaluation:  # as after local training: what `test-adapter` and `benchmark` look at by themselves
        write_examples(_held_out(config), dataset.evaluation)
    if scores is not None:
        sides = [
            Evaluation(loss=math.log(side.perplexity), accuracy=side.accuracy, tokens=0, examples=scores.samples or 0)
            for side in (scores.base, scores.adapter)
            if side.perplexity and side.accuracy is not None
        ]
        if len(sides) == 2:
            title = f"held out: {scores.samples} examples of this machine, none of them trained on here"
            console.print(before_and_after(sides[0], sides[1], title=title))
    if (private := read_adapter_folder(path).metadata.privacy) is not None:
        console.print(f"private: {private}: {private.note}", soft_wrap=True)
    console.print(
        f"saved {path}\nnext: neuralforge test-adapter {path} --test-file samples.jsonl\n"
        f"      neuralforge benchmark --adapter {path}",
        soft_wrap=True,
    )


def _held_out(config: TrainConfig) -> Path:
    return run_folder(config.output.directory, config.model.adapter_name) / HELD_OUT_FILE


@contextlib.contextmanager
def _status(console: Console, words: str) -> Iterator[None]:
    with console.status(Text(words)) if console.is_terminal else contextlib.nullcontext():
        yield
