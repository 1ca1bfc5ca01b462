"""`neuralforge lsp` under pytest-lsp's client, which knows what editors can do and minds the protocol's words."""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path

import pytest
from lsprotocol import types
from pytest_lsp import LspSpecificationWarning, client_capabilities, make_test_lsp_client

from neuralforge.evaluation.opened import open_adapter

URI = "file:///project/reader.py"


@pytest.mark.slow
@pytest.mark.parametrize("editor", ["neovim", "visual-studio-code", "emacs"])
def test_each_editor_gets_what_the_adapter_writes_and_nothing_that_it_cannot_take(
    program: Path, adapter: Path, code: str, editor: str
) -> None:
    wanted = open_adapter(adapter, max_length=512).complete(code, adapter=True, max_new_tokens=16).text
    lines = code.split("\n")
    place = types.Position(line=len(lines) - 1, character=len(lines[-1]))

    async def session() -> None:
        client = make_test_lsp_client()
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        await client.start_io(str(program), "lsp", "--adapter", str(adapter), "--max-tokens", "16", env=environment)
        try:
            async with asyncio.timeout(90):
                parameters = types.InitializeParams(capabilities=client_capabilities(editor))
                result = await client.initialize_session(parameters)
                assert result.capabilities.inline_completion_provider is not None
                item = types.TextDocumentItem(uri=URI, language_id="python", version=1, text=code)
                client.text_document_did_open(types.DidOpenTextDocumentParams(text_document=item))
                context = types.InlineCompletionContext(trigger_kind=types.InlineCompletionTriggerKind.Automatic)
                found = await client.text_document_inline_completion_async(
                    types.InlineCompletionParams(
                        text_document=types.TextDocumentIdentifier(uri=URI), position=place, context=context
                    )
                )
                assert [each.insert_text for each in found.items] == [wanted]
                assert client.messages == []
                await client.shutdown_session()
                assert client.error is None
                assert client._server is not None
                assert client._server.returncode == 0
        finally:
            await client.stop()

    with warnings.catch_warnings():
        warnings.simplefilter("error", LspSpecificationWarning)
        asyncio.run(session())
