"""From a name to a frozen model: friendly names, hub ids, local folders, GGUF files.

Code that comes with a model is never run unless that is asked for, and weights are read from safetensors alone: a
pickle can run anything. transformers would convert a repository that holds only pickles through a service of the hub;
naming the exact commit, as we always do, keeps it from that.
"""

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import transformers
from huggingface_hub import constants
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from neuralforge.models.base import BaseModel, end_token_id
from neuralforge.models.device import resolve_device, resolve_dtype
from neuralforge.models.fingerprint import fingerprint
from neuralforge.models.origin import Origin, locate
from neuralforge.models.tokenizer import load_tokenizer
from neuralforge_common.errors import ModelError, NeuralForgeError


def load_base_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
) -> BaseModel:
    """Load a base model, frozen and in `eval()` mode, with its tokenizer.

    `name_or_path` is a friendly name of the catalogue (which wins over a folder of the same name: write `./name` for
    the folder), a folder, a `.gguf` file or a hub id `owner/name`. `revision` is a branch, tag or commit of the hub.
    `dtype` is auto, float32, bfloat16 or float16; auto takes bfloat16 where the device multiplies it natively.
    `device` is auto, cpu, cuda, cuda:N or mps.

    Raises:
        ModelError: the base cannot be found, is damaged, needs foreign code, holds only pickles, or does not fit.
        StorageError: a converted base cannot be written to the cache.
    """
    target = resolve_device(device)
    number_format = resolve_dtype(dtype, target)
    origin = locate(name_or_path, revision=revision)
    local_only = origin.is_local or not _hub_is_reachable()
    with _readable_errors(origin, local_only), _quiet(local_only):
        origin = _pinned(origin, local_only)
        config = _load_config(origin, local_only, trust_remote_code)
        _require_safetensors(origin, local_only)
        model, weight_notices = _load_weights(origin, config, number_format, local_only, trust_remote_code)
        tokenizer, tokenizer_notices = load_tokenizer(
            origin.place, revision=origin.revision if not origin.is_local else None, trust_remote_code=trust_remote_code
        )
        end_token_id(tokenizer)  # refuse here, not after an hour of training
        model = model.to(target)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    # What saves an adapter writes this name down: it must not be a path of this machine's cache.
    model.config._name_or_path = model.name_or_path = origin.source
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=origin.name,
        source=origin.source,
        revision=origin.revision,
        family=str(model.config.model_type),
        license=origin.license,
        fingerprint=fingerprint(model),
        is_encoder_decoder=bool(model.config.is_encoder_decoder),
        notices=(*origin.notices, *weight_notices, *tokenizer_notices),
    )


def load_base_config(name_or_path: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a base as `load_base_model` finds it, without its weights; `dtype` is their own format.

    Raises:
        ModelError: the base cannot be found, is damaged or needs foreign code.
        StorageError: a converted base cannot be written to the cache.
    """
    origin = locate(name_or_path, revision=revision)
    local_only = origin.is_local or not _hub_is_reachable()
    with _readable_errors(origin, local_only), _quiet(local_only):
        return _load_config(_pinned(origin, local_only), local_only, trust_remote_code=False)


def _pinned(origin: Origin, local_only: bool) -> Origin:
    """A hub id at the commit that its revision means now, so that all its files come from one; folders as they are.

    Without a network its place becomes the folder in the cache: for a hub id transformers asks for more files than it
    is told to, and each of them is tried for half a minute.
    """
    if origin.is_local:
        return origin
    file: Any = cached_file(origin.place, "config.json", revision=origin.revision, local_files_only=local_only)
    commit = extract_commit_hash(file, None) or origin.revision
    return replace(origin, place=str(Path(file).parent) if local_only else origin.place, revision=commit)


def _load_config(origin: Origin, local_only: bool, trust_remote_code: bool) -> PreTrainedConfig:
    if origin.is_local and not (Path(origin.place) / "config.json").is_file():
        raise ModelError(
            f"{origin.source}: no config.json, so this is not a model's folder",
            hint="the folder that save_pretrained writes, or a .gguf file",
        )
    where: dict[str, Any] = {"local_files_only": local_only}
    if not origin.is_local:
        where["revision"] = origin.revision
    raw, _ = PreTrainedConfig.get_config_dict(origin.place, **where)
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING and not (trust_remote_code and "auto_map" in raw):
        if "auto_map" in raw:
            raise ModelError(
                f"{origin.source} comes with its own code, which we do not run (model_type {kind!r})",
                hint="read its code; if you trust it: --trust-remote-code",
            )
        raise ModelError(
            f"{origin.source}: model_type {kind!r} is unknown to transformers {transformers.__version__}",
            hint="a base is a causal or an encoder-decoder language model",
        )
    if weights := raw.get("transformers_weights"):  # it may name a pickle
        raise ModelError(
            f"{origin.source}: its config.json names weights of its own ({weights!r}); wanted model.safetensors",
            hint="load it with transformers and save_pretrained it",
        )
    config: PreTrainedConfig = AutoConfig.from_pretrained(origin.place, trust_remote_code=trust_remote_code, **where)
    return config


def _require_safetensors(origin: Origin, local_only: bool) -> None:
    index = cached_file(
        origin.place,
        "model.safetensors.index.json",
        revision=None if origin.is_local else origin.revision,
        local_files_only=local_only,
        _raise_exceptions_for_missing_entries=False,
    )
    if index is not None:
        # transformers hands a part of another name to torch.load.
        for name in json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values():
            if not name.endswith(".safetensors"):
                raise ModelError(
                    f"{origin.source}: model.safetensors.index.json names {name!r}, which is no safetensors file",
                    hint="take the model from where it was published",
                )
    if not origin.is_local:
        return
    folder = Path(origin.place)
    if any(folder.glob("*.safetensors")):
        return
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        raise ModelError(
            f"{folder}: the weights are a pickle ({pickles[0]}), which can run code when it is read; "
            "wanted model.safetensors",
            hint="convert it on a machine that you can throw away: load it with transformers, save_pretrained it",
        )
    raise ModelError(
        f"{folder}: no weights, wanted model.safetensors", hint="the folder that save_pretrained writes, whole"
    )


def _load_weights(
    origin: Origin, config: PreTrainedConfig, dtype: torch.dtype, local_only: bool, trust_remote_code: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    encoder_decoder = bool(config.is_encoder_decoder)
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping and not trust_remote_code:
        raise ModelError(
            f"{origin.source} is a {config.model_type}, which does not write text",
            hint="a base is a causal or an encoder-decoder language model",
        )
    auto: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    where: dict[str, Any] = {} if origin.is_local else {"revision": origin.revision}
    model, found = auto.from_pretrained(
        origin.place,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        local_files_only=local_only,
        output_loading_info=True,
        **where,
    )
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with noise and warn.
        raise ModelError(
            f"{origin.source}: {len(missing)} of the model's tensors are not in its weights (first: {missing[0]})",
            hint="the weights belong to another model, or a part of them was not downloaded",
        )
    strange = sorted(found["unexpected_keys"])
    notices = (f"{len(strange)} tensors of {origin.source} are not used (first: {strange[0]})",) if strange else ()
    return model, notices


def _hub_is_reachable() -> bool:
    """Whether asking the hub makes sense; without this a machine that is offline retries for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():  # the proxy resolves names, not we
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _readable_errors(origin: Origin, local_only: bool) -> Iterator[None]:
    """Turn whatever a foreign file makes transformers raise into one line that says what to do."""
    try:
        yield
    except NeuralForgeError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"{origin.source} does not fit into memory", hint="a smaller base, --device cpu, or dtype bfloat16"
        ) from error
    except Exception as error:  # a damaged folder raises nearly anything: KeyError, TypeError, SafetensorError, ...
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        if "trust_remote_code" in text:
            message = f"{origin.source} comes with its own code, which we do not run"
            hint = "read its code; if you trust it: --trust-remote-code"
        elif origin.is_local:
            message = f"{origin.source} cannot be loaded: {type(error).__name__}: {first}"
            hint = "is the folder whole? compare its files with where it came from, or copy it again"
        elif "gated" in text or "401" in text or "403" in text:
            message = f"{origin.source} is closed to us: {first}"
            hint = "accept its terms on the hub and log in: hf auth login"
        elif "safetensors" in text:
            message = f"{origin.source} at {origin.revision or 'main'} holds no safetensors, only pickles: {first}"
            hint = (
                "the hub's bot often leaves a conversion in a pull request: --revision refs/pr/N; "
                "our own names of CodeT5 stand for one"
            )
        else:
            cache = constants.HF_HUB_CACHE
            message = (
                f"{origin.source} (revision {origin.revision or 'main'}) is not in the cache ({cache}) "
                "and the hub cannot be reached"
                if local_only
                else f"{origin.source} (revision {origin.revision or 'main'}) cannot be had from the hub: {first}"
            )
            hint = (
                "smollm2-135m and nf-tiny need no network; or name a folder with the model; "
                f"or run `hf download {origin.source}` where there is a network and copy the cache"
            )
        raise ModelError(message, hint=hint) from error


@contextmanager
def _quiet(local_only: bool) -> Iterator[None]:
    """Only the command line prints; the hub's download bars stay, since a download takes minutes."""
    log: Any = logging  # its functions carry no types
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if local_only:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if local_only and bars:
            log.enable_progress_bar()
