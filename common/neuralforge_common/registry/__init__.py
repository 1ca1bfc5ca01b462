"""What a registry of adapters and its clients share.

release    names, versions, and the digest of a release's files
gate       what an adapter must show of itself to be published
index      what a registry holds, signed, numbered, and good until it expires
"""
