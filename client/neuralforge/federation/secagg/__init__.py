"""A client's side of secure aggregation: what it must see before it says anything, and what it never says.

pins     the identities of its peers, as they were first seen
round    one attempt: its fresh keys, in memory alone, and the steps that may be taken with them, once each
member   this machine in all rounds: its identity, one attempt at a time, what it has unmasked before
"""
