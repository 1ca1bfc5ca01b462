"""Every failure that a person can cause or meet, in one tree.

    NeuralForgeError            exit 1
    ├── UsageError              exit 2: the command line itself is wrong
    ├── ConfigError             a configuration file or value; carries every fault found
    ├── DataError               a dataset, a repository, a source tree
    ├── ModelError              a base model cannot be found, loaded or adapted
    ├── AdapterError            an adapter folder is damaged, hostile or made for another base
    │   └── SignatureError      it is not signed, not by anybody who is trusted, or not as it was signed
    ├── TrainingError           a run that cannot go on (a loss that is not finite, no examples left)
    ├── CheckpointError         a checkpoint that is damaged or belongs to another run
    ├── StorageError            the disk: full, read-only, not writable
    ├── VaultError              an encrypted store: no key, another key, damaged
    ├── SandboxError            code of strangers that this machine cannot confine
    ├── PrivacyError            a combination that cannot be private, a damaged ledger
    │   └── BudgetSpent         a step that would exceed the privacy budget
    ├── FederationError         the other side of a federation: unreachable, unknown, another version, not allowed
    └── RegistryError           a registry of adapters: unreachable, not allowed, not there, not what was published

A message says what is wrong, what was found and what was wanted; the hint says the way out. Only the command
line catches these; libraries raise them.
"""


class NeuralForgeError(Exception):
    """An expected failure: one clear line for a person, and a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(NeuralForgeError):
    """The command line itself is wrong."""

    exit_code = 2


class ConfigError(NeuralForgeError):
    """A configuration that cannot be used; `faults` holds one line for each thing wrong with it."""

    def __init__(self, faults: list[str], *, hint: str = "") -> None:
        super().__init__("\n".join(faults), hint=hint)
        self.faults = tuple(faults)


class DataError(NeuralForgeError):
    """A dataset, repository or source tree that cannot be read or holds nothing usable."""


class ModelError(NeuralForgeError):
    """A base model that cannot be found, loaded or adapted."""


class AdapterError(NeuralForgeError):
    """An adapter folder that is damaged, hostile, or made for another base."""


class SignatureError(AdapterError):
    """An adapter that is not signed, not by anybody who is trusted, or not as it was signed.

    `step` is the step of the verification that failed, `fingerprint` the key's where it is known by then.
    """

    def __init__(self, message: str, *, hint: str = "", step: str = "", fingerprint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.fingerprint = fingerprint


class TrainingError(NeuralForgeError):
    """A training run that cannot go on."""


class CheckpointError(NeuralForgeError):
    """A checkpoint that is damaged or belongs to another run."""


class StorageError(NeuralForgeError):
    """A disk that is full, read-only or not writable."""


class VaultError(NeuralForgeError):
    """An encrypted store that cannot be opened: no key, another key, or damaged."""


class SandboxError(NeuralForgeError):
    """Code of strangers that this machine cannot confine; nothing of it was run."""


class PrivacyError(NeuralForgeError):
    """A privacy budget that is spent, a combination that cannot be private, or a ledger that cannot be trusted."""


class BudgetSpent(PrivacyError):
    """A step that would exceed the privacy budget; nothing was charged for it, and nothing learnt."""


class ServingError(NeuralForgeError):
    """The editor's server: none runs, its port is taken, it is busy, or it refuses a request."""


class FederationError(NeuralForgeError):
    """The other side of a federation: unreachable, unknown, of another version, or asking for what is not allowed."""


class RegistryError(NeuralForgeError):
    """A registry that cannot be reached, says no, has no such thing, or gives what is not what was published.

    `status` is the word that gRPC has for it ("NOT_FOUND"), where a registry said it.
    """

    def __init__(self, message: str, *, hint: str = "", status: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
