"""The language server: inline completions over standard input and output.

initialize                        inlineCompletionProvider; full or incremental changes; UTF-16 positions
textDocument/didChange            what is being written for that document is given up
textDocument/inlineCompletion     one item, or none where the document has changed meanwhile
$/cancelRequest                   ends the writing at the next token
"""

from __future__ import annotations

import asyncio

from lsprotocol import types
from pygls.exceptions import JsonRpcInternalError
from pygls.lsp.server import LanguageServer

from neuralforge.serving.delivery import Delivery
from neuralforge.serving.openai_api import plain
from neuralforge.serving.request import CompletionRequest, Finish
from neuralforge.serving.worker import Busy, Worker
from neuralforge_common import __version__
from neuralforge_common.errors import NeuralForgeError


def make_language_server(worker: Worker, *, max_tokens: int) -> LanguageServer:
    """A server whose completions the worker writes; it may still be opening its model when the editor connects."""
    server = LanguageServer("neuralforge", __version__, text_document_sync_kind=types.TextDocumentSyncKind.Incremental)

    @server.feature(types.INITIALIZED)
    async def initialized(server: LanguageServer, params: types.InitializedParams) -> None:
        try:
            await asyncio.wrap_future(worker.opened)
        except Exception as error:
            message = f"neuralforge: {_shown(error)}"
            server.window_show_message(types.ShowMessageParams(type=types.MessageType.Error, message=message))

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(server: LanguageServer, params: types.DidChangeTextDocumentParams) -> None:
        worker.cancel_session(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(server: LanguageServer, params: types.DidCloseTextDocumentParams) -> None:
        worker.cancel_session(params.text_document.uri)

    # Without options pygls does not tell the client that it can do this.
    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def complete(server: LanguageServer, params: types.InlineCompletionParams) -> types.InlineCompletionList:
        document = server.workspace.get_text_document(params.text_document.uri)
        version, source = document.version, document.source
        # What the list of the editor has selected counts as written: the item begins with it, or the editor drops it.
        selected = params.context.selected_completion_info
        where = types.Range(start=params.position, end=params.position) if selected is None else selected.range
        begun = "" if selected is None else selected.text
        request = CompletionRequest(
            prompt=plain(source[: document.offset_at_position(where.start)] + begun),
            suffix=plain(source[document.offset_at_position(where.end) :]),
            max_tokens=max_tokens,
            session=params.text_document.uri,
        )
        text = await _written(worker, request)
        if not text or server.workspace.get_text_document(params.text_document.uri).version != version:
            return types.InlineCompletionList(items=[])
        return types.InlineCompletionList(items=[types.InlineCompletionItem(insert_text=begun + text, range=where)])

    return server


async def _written(worker: Worker, request: CompletionRequest) -> str:
    """The whole completion; empty where it was given up."""
    pieces: list[str] = []
    try:
        # A cancelled request leaves this block, and the model's thread stops at the next token.
        with Delivery(worker, request) as delivery:
            async for item in delivery:
                if isinstance(item, Finish):
                    return "" if item.reason == "cancelled" else "".join(pieces)
                pieces.append(item.text)
    except Busy:
        return ""  # the next keystroke asks again
    except NeuralForgeError as error:
        raise JsonRpcInternalError(_shown(error)) from error
    return ""


def _shown(error: Exception) -> str:
    return error.message if isinstance(error, NeuralForgeError) else f"{type(error).__name__}: {error}"
