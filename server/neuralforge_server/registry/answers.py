"""Around every call: who it is from, and our errors as gRPC's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from neuralforge_common.errors import AdapterError, NeuralForgeError, RegistryError
from neuralforge_common.strict_json import is_plain_text, shortened
from neuralforge_server.registry.access import Caller
from neuralforge_server.registry.callers import Who, peer_of

HINT = "hint-bin"
"""The trailing metadata in which an error's way out travels, UTF-8."""

_LOG = logging.getLogger(__name__)


@contextmanager
def answering(
    context: grpc.ServicerContext,
    who: Who,
    what: str,
    *,
    refusal: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
) -> Iterator[Caller]:
    """Knows the caller, and turns our errors into answers; `refusal` is what one about an adapter becomes.

    Nothing of a request is logged that may be secret.
    """
    name = peer_of(context)
    try:
        caller = who(context)
        name = f"{caller.name or 'nobody'} from {name}"
        yield caller
        return
    except RegistryError as error:
        code = grpc.StatusCode[error.status or "FAILED_PRECONDITION"]
        message, hint = error.message, error.hint
        log = _LOG.error if code is grpc.StatusCode.DATA_LOSS else _LOG.info
        log("%s refused, %s: %s", what, name, message)
    except AdapterError as error:
        code, message, hint = refusal, error.message, error.hint
        _LOG.info("%s refused, %s: %s", what, name, message)
    except NeuralForgeError as error:
        # Of this machine's troubles (disk, database) the caller hears only that there are some.
        _LOG.error("%s failed, %s: %s", what, name, error.message)
        code, message, hint = grpc.StatusCode.INTERNAL, "the registry cannot use its storage: ask who runs it", ""
    except Exception as error:
        if not context.is_active():  # the caller has gone, or was cut off
            raise
        _LOG.exception("%s failed, %s", what, name)
        code, message, hint = grpc.StatusCode.INTERNAL, f"the registry failed ({type(error).__name__})", ""
    if hint:
        context.set_trailing_metadata(((HINT, hint.encode()),))
    context.abort(code, message if is_plain_text(message) else shortened(message, 300))
