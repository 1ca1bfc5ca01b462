"""Search: what there is for whoever asks, as the registry tells it."""

from __future__ import annotations

from collections.abc import Sequence

from neuralforge.registry.connection import Connection
from neuralforge.registry.listing import Listing, listing
from neuralforge_common.protocol import registry_pb2 as messages

_PAGE = 100


def search(
    connection: Connection,
    text: str = "",
    *,
    tags: Sequence[str] = (),
    language: str = "",
    base_model: str = "",
    team: str = "",
    most: int = 100,
) -> tuple[Listing, ...]:
    """The newest version of each adapter that matches, at most `most` of them, by team and name.

    Raises:
        RegistryError: the registry cannot be asked, or refuses the question.
    """
    found: list[Listing] = []
    after = ""
    while len(found) < most:
        request = messages.SearchRequest(
            text=text,
            tags=tags,
            language=language,
            base_model=base_model,
            team=team,
            limit=min(_PAGE, most - len(found)),
            after=after,
        )
        reply = connection.call("Search", request, messages.SearchReply)
        found.extend(listing(each) for each in reply.releases)
        # A page that does not go on would be asked for again for ever.
        if not reply.releases or not reply.next or reply.next == after:
            break
        after = reply.next
    return tuple(found[:most])
