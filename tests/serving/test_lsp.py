"""`neuralforge lsp` and a real client: pygls' own, over the pipes of a subprocess."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from neuralforge.evaluation.opened import open_adapter

URI = "file:///project/reader.py"
Session = Callable[[LanguageClient, types.InitializeResult], Awaitable[None]]


@pytest.fixture(scope="module")
def speak(program: Path, adapter: Path) -> Callable[[Session], None]:
    """Run a session with a server of its own; it must end as the protocol says."""

    def run(session: Session, *arguments: object) -> None:
        async def whole() -> None:
            client = LanguageClient("test", "1")
            environment = {"OMP_NUM_THREADS": "1"} | os.environ
            words = [str(word) for word in arguments or ("--adapter", adapter, "--max-tokens", 16)]
            await client.start_io(str(program), "lsp", *words, env=environment)
            capabilities = types.ClientCapabilities()
            result = await client.initialize_async(types.InitializeParams(capabilities=capabilities))
            client.initialized(types.InitializedParams())
            try:
                async with asyncio.timeout(90):
                    await session(client, result)
                await client.shutdown_async(None)
            finally:
                client.exit(None)
                await asyncio.wait_for(client.stop(), 30)

        asyncio.run(whole())

    return run


def opens(client: LanguageClient, text: str) -> None:
    item = types.TextDocumentItem(uri=URI, language_id="python", version=1, text=text)
    client.text_document_did_open(types.DidOpenTextDocumentParams(text_document=item))


def changes(client: LanguageClient, version: int, *edits: Any) -> None:
    document = types.VersionedTextDocumentIdentifier(uri=URI, version=version)
    client.text_document_did_change(types.DidChangeTextDocumentParams(text_document=document, content_changes=edits))


def asks(client: LanguageClient, line: int, character: int, **context: Any) -> Any:
    return client.text_document_inline_completion_async(
        types.InlineCompletionParams(
            text_document=types.TextDocumentIdentifier(uri=URI),
            position=types.Position(line=line, character=character),
            context=types.InlineCompletionContext(trigger_kind=types.InlineCompletionTriggerKind.Automatic, **context),
        )
    )


def test_an_editor_completes_code_as_it_is_typed(speak: Any, adapter: Path, code: str) -> None:
    opened = open_adapter(adapter, max_length=512)

    def wanted(prompt: str) -> str:
        return opened.complete(prompt, adapter=True, max_new_tokens=16).text

    async def session(client: LanguageClient, result: types.InitializeResult) -> None:
        # 1. The capability is advertised.
        assert result.capabilities.inline_completion_provider == types.InlineCompletionOptions()
        sync = result.capabilities.text_document_sync
        assert isinstance(sync, types.TextDocumentSyncOptions)
        assert sync.change == types.TextDocumentSyncKind.Incremental
        # 2. A completion at the end of the document.
        opens(client, code)
        lines = code.split("\n")
        end = types.Position(line=len(lines) - 1, character=len(lines[-1]))
        (item,) = (await asks(client, end.line, end.character)).items
        assert item.insert_text == wanted(code)
        assert item.range.start == item.range.end == end
        # 3. An incremental change whose position counts UTF-16: the emoji before it is two units.
        changes(client, 2, types.TextDocumentContentChangePartial(range=types.Range(end, end), text='"🦀"'))
        behind = types.Position(line=end.line, character=end.character + 4)
        changes(client, 3, types.TextDocumentContentChangePartial(range=types.Range(behind, behind), text=".en"))
        typed = f'{code}"🦀".en'
        (item,) = (await asks(client, behind.line, behind.character + 3)).items
        assert item.insert_text == wanted(typed)
        # 4. A full change; the text behind the cursor is no part of the prompt.
        changes(client, 4, types.TextDocumentContentChangeWholeDocument(text="def f(a):\n    ret\n"))
        (item,) = (await asks(client, 1, 7)).items
        assert item.insert_text == wanted("def f(a):\n    ret")
        # 5. What the editor's list has selected counts as written, and the item begins with it.
        word = types.Range(types.Position(1, 4), types.Position(1, 7))
        info = types.SelectedCompletionInfo(range=word, text="return")
        (item,) = (await asks(client, 1, 7, selected_completion_info=info)).items
        assert item.insert_text == "return" + wanted("def f(a):\n    return")
        assert item.range == word

    speak(session)


@pytest.mark.slow
def test_stale_and_cancelled_requests_get_nothing_and_the_next_is_served(speak: Any, adapter: Path, code: str) -> None:
    async def session(client: LanguageClient, result: types.InitializeResult) -> None:
        opens(client, code)
        last, column = code.count("\n"), len(code.rpartition("\n")[2])
        # 1. The document changes while a completion is being written.
        stale = asyncio.ensure_future(asks(client, last, column))
        await asyncio.sleep(0.3)
        end = types.Position(line=last, character=column)
        changes(client, 2, types.TextDocumentContentChangePartial(range=types.Range(end, end), text="re"))
        assert not (await stale).items
        # 2. $/cancelRequest: the answer says so, and comes long before 900 tokens are written.
        identity = "to-be-cancelled"
        waiting = client.protocol.send_request_async(
            "textDocument/inlineCompletion",
            types.InlineCompletionParams(
                text_document=types.TextDocumentIdentifier(uri=URI),
                position=types.Position(line=last, character=column + 2),
                context=types.InlineCompletionContext(trigger_kind=types.InlineCompletionTriggerKind.Invoked),
            ),
            identity,
        )
        cancelled = asyncio.ensure_future(waiting)
        await asyncio.sleep(0.3)
        client.cancel_request(types.CancelParams(id=identity))
        with pytest.raises(JsonRpcException) as caught:
            await cancelled
        assert caught.value.code == types.LSPErrorCodes.RequestCancelled
        # 3. A newer request of the same document takes the place of the older one.
        older, newer = asyncio.ensure_future(asks(client, 0, 0)), asyncio.ensure_future(asks(client, last, 2))
        assert not (await older).items
        changes(client, 3, types.TextDocumentContentChangeWholeDocument(text="def"))
        assert not (await newer).items
        assert (await asyncio.wait_for(asks(client, 0, 3), 60)).items

    speak(session, "--adapter", adapter, "--max-tokens", 400)


@pytest.mark.slow
def test_a_base_that_cannot_be_loaded_is_shown_to_the_person(speak: Any, adapter: Path) -> None:
    shown: list[str] = []

    async def session(client: LanguageClient, result: types.InitializeResult) -> None:
        heard = asyncio.Event()

        @client.feature(types.WINDOW_SHOW_MESSAGE)
        def show(params: types.ShowMessageParams) -> None:
            shown.append(params.message)
            heard.set()

        await heard.wait()
        opens(client, "def")
        with pytest.raises(JsonRpcException, match="no-such-base"):
            await asks(client, 0, 3)

    speak(session, "--adapter", adapter, "--base", "./no-such-base")
    assert "no-such-base" in shown[0]
