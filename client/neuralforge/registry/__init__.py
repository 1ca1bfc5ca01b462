"""Registries of adapters, as those see them who publish, search and pull.

home        which registries this machine knows, and what it keeps of each
connection  a call's channel: whose authority, which credentials      calls   failures in words
memory      the last signed indexes, so that an older one is noticed
listing     a release as the registry describes it, checked
publish     folder → registry       worse     an adapter that says of itself that it does not beat its base
pull        registry → folder       download  blobs that go on where they broke off
search, yank
"""
