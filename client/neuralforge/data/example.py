"""One training example: what stands before the cursor, and what is written next."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A completion to learn, in the context in which it was written.

    `path` is relative to the repository, with forward slashes; `repo` is a name, never an address (an address can
    hold a password). Both are empty for an example that was not cut from a file that we know. `suffix` is what stands
    after the cursor, where that is shown (fill-in-the-middle). Of examples from a history, `time` is the commit's in
    RFC 3339, `license` an SPDX identifier, `author` a pseudonym and `kind` how the example was cut: commit, function
    or fim.
    """

    context: str
    completion: str
    language: str = ""
    repo: str = ""
    path: str = ""
    commit: str = ""
    suffix: str = ""
    time: str = ""
    license: str = ""
    author: str = ""
    kind: str = ""

    @property
    def id(self) -> str:
        """16 hex digits of what is learnt and where it stands: a commit that leaves a file alone keeps its ids."""
        digest = blake2b(digest_size=8)
        fields = (self.repo, self.path, self.language, self.context, self.completion)
        for field in (*fields, self.suffix) if self.suffix else fields:
            # The length in front keeps ("ab", "c") apart from ("a", "bc").
            raw = field.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()
