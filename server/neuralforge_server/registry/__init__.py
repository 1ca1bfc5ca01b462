"""A registry of adapters: what a team publishes, searches and pulls.

schema      the tables, in SQLite or PostgreSQL         published   a version, a search, a quota
releases    what was published, and who may see it
blobs       files by their SHA-256, through fsspec      uploads     what is on its way in, invisible
access      teams, members, tokens, and the caller      admit       whether a folder may be published
audit       who did what, when                          index       what a caller may see, signed
place       the registry's folder, opened               service     the gRPC service
requests    what a request must be                      answers     our errors as gRPC's
callers     who a call is from                          streams     how many at a time
serve       both ports, answering                       wire        nouns as messages
"""
