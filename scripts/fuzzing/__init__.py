"""What `scripts/fuzz.py` feeds that is more than a reader of bytes: a registry that answers.

registry    calls, streams and walks, and what must hold after each      place       the registry and its callers
mutation    a message with one field changed                             framing     several messages in one input
adapters    small ones, and the uploads that they are
"""
