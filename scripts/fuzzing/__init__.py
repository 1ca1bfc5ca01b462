"""What `scripts/fuzz.py` feeds that is more than a reader of bytes: servers that answer.

registry    calls, streams and walks, and what must hold after each      place       the registry and its callers
enrolment   calls of its two services, and what must hold after each     federation  the federation and its callers
admission   who may be given what there, by the request alone            nodes       how a node comes in and calls
calls       one call, and what came of it                                framing     several messages in one input
mutation    a message with one field changed                             adapters    small ones, and their uploads
"""
