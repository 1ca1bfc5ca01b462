"""One training example: what stands before the cursor, and what is written next."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A completion to learn, in the context in which it was written.

    `path` is relative to the repository, with forward slashes; `repo` is a name, never an address (an address can
    hold a password). Both are empty for an example that was not cut from a file that we know.
    """

    context: str
    completion: str
    language: str = ""
    repo: str = ""
    path: str = ""
    commit: str = ""

    @property
    def id(self) -> str:
        """16 hex digits that depend on everything but the commit: a commit that leaves a file alone keeps its ids."""
        digest = blake2b(digest_size=8)
        for field in (self.repo, self.path, self.language, self.context, self.completion):
            # The length in front keeps ("ab", "c") apart from ("a", "bc").
            raw = field.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()
