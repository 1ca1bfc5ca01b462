"""Secrets and personal data taken out of text before it is stored or learnt.

A secret of a known format (`secret_formats`) is taken wherever it stands; one without a format only where it is
assigned to a telling name, or stands in an address. What belongs to persons (`personal`) is looked for in what is left
between secrets. Each pattern is tried only where a fixed text stands (`ghp_`,
`passw`, `://`, `@`) and over a bounded length: the time is linear in the text, whatever the text holds.

No pattern can match a placeholder or reach over one, so redacting twice is redacting once.
"""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from neuralforge.data.personal import personal_data
from neuralforge.data.secret_formats import SHORTEST, secrets_of_known_format


@dataclass(frozen=True, slots=True, order=True)
class Secret:
    """Where a secret stands in a text, and what it is."""

    start: int
    end: int
    kind: str


PLACEHOLDER = re.compile(r"<REDACTED:[a-z-]+>")
"""What stands in the place of a secret."""


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with `<REDACTED:kind>` in the place of each secret, and how many there were of each kind."""
    secrets = find_secrets(text)
    return _replaced(text, 0, len(text), secrets), Counter(secret.kind for secret in secrets)


def redact_pair(before: str, after: str) -> tuple[str, str, Counter[str]]:
    """Two texts that belong together, redacted as one; a secret that the cut goes through goes to the first."""
    text, cut = before + after, len(before)
    secrets = find_secrets(text)
    if not secrets:
        return before, after, Counter()
    through = next((secret for secret in secrets if secret.start < cut < secret.end), None)
    end = through.end if through else cut
    first = _replaced(text, 0, end, [secret for secret in secrets if secret.end <= end])
    second = _replaced(text, end, len(text), [secret for secret in secrets if secret.start >= end])
    return first, second, Counter(secret.kind for secret in secrets)


def find_secrets(text: str) -> list[Secret]:
    """Every secret of a text, in order; where rules overlap, one secret that spans them all."""
    secrets = _merged([*_private_keys(text), *_known_formats(text), *_url_passwords(text), *_assigned(text)])
    secrets = sorted([*secrets, *_addresses(text, secrets)])
    for _ in range(_ROUNDS):  # what is taken out may have been all that was in the way of its neighbour
        found = list(_personal(text, secrets))
        if not found:
            break
        secrets = sorted([*secrets, *found])
    return secrets


_ROUNDS = 8


def _merged(found: list[Secret]) -> list[Secret]:
    found.sort()
    merged: list[Secret] = []
    for secret in found:
        if merged and secret.start < merged[-1].end:
            last = merged.pop()
            kind = secret.kind if last.kind in _VAGUE and secret.kind not in _VAGUE else last.kind
            secret = Secret(last.start, max(last.end, secret.end), kind)
        merged.append(secret)
    return merged


def _personal(text: str, secrets: list[Secret]) -> Iterator[Secret]:
    """In each piece between secrets alone, as if the text began and ended there."""
    start = 0
    for end, following in [*((secret.start, secret.end) for secret in secrets), (len(text), 0)]:
        found = [Secret(start + first, start + last, kind) for first, last, kind in personal_data(text[start:end])]
        yield from _merged(found)
        start = following


_VAGUE = frozenset({"password", "secret"})


def _replaced(text: str, start: int, end: int, secrets: list[Secret]) -> str:
    parts = []
    for secret in secrets:
        parts += [text[start : secret.start], f"<REDACTED:{secret.kind}>"]
        start = secret.end
    return "".join([*parts, text[start:end]])


# --- Private keys -----------------------------------------------------------------------------------------------------

_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = "-----END"
_KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{40}")
_LONGEST_KEY = 1 << 15
# A key that was cut off: lines of base64 right behind the first line, in whatever quotes a program puts around them.
_KEY_LINES = re.compile(r"""(?:(?:\\[nr]|[\s"',])*+[A-Za-z0-9+/=]{40,200}+){1,400}+""")


def _private_keys(text: str) -> Iterator[Secret]:
    if "PRIVATE KEY" not in text:
        return
    begins = list(_KEY_BEGIN.finditer(text))
    ends = [match.end() for match in re.finditer(r"-----END[A-Z0-9 ]{0,80}(?:-----)?", text)]
    for begin, following in zip_longest(begins, begins[1:]):
        limit = min(following.start() if following else len(text), begin.end() + _LONGEST_KEY)
        at = bisect_left(ends, begin.end())
        if at < len(ends) and ends[at] <= limit and _KEY_BODY.search(text, begin.end(), ends[at]):
            yield Secret(begin.start(), ends[at], "private-key")
        elif lines := _KEY_LINES.match(text, begin.end(), limit):
            yield Secret(begin.start(), lines.end(), "private-key")


# --- Known formats ----------------------------------------------------------------------------------------------------

_LONG_RUN = re.compile(rb" [^ ]{%d,}+" % SHORTEST)
_RUN_TABLE = bytes(c if chr(c).isalnum() or chr(c) in "_-.+/=" else 0x20 for c in range(128)) + b" " * 128


def _known_formats(text: str) -> Iterator[Secret]:
    # Formats are runs of at least SHORTEST of these characters. Cutting such runs out and looking only there first is
    # four times as fast as the search itself, and hardly any file goes on to that.
    runs = _LONG_RUN.findall(b" " + text.encode("utf-8", "replace").translate(_RUN_TABLE))
    if any(True for _ in secrets_of_known_format(b"".join(runs).decode())):
        for start, end, kind in secrets_of_known_format(text):
            yield Secret(start, end, kind)


# --- Addresses: passwords in URLs, e-mail -----------------------------------------------------------------------------

_CREDENTIALS = re.compile(r"""[^\s/:@"'`<>]{0,128}+:([^\s/@"'`<>]{1,256}+)@""")
_TEMPLATE = re.compile(r"\$\{|\{\{|\{[A-Za-z_]|%\(|%[sdrv]|^\$[A-Za-z_]|^\{\}$|^\*+$|^\.+$")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]{0,62}+(?:\.[A-Za-z0-9][A-Za-z0-9\-]{0,62}+){1,8}+")
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-")
_GENERIC_TLD = re.compile(
    "com|org|net|edu|gov|mil|int|info|biz|name|pro|mobi|asia|jobs|dev|app|cloud|tech|email|online|site|xyz|club|shop|"
    "blog|agency|company|systems|software|solutions|network|digital|studio|world|group|team|works?|life|live|ltd|gmbh|"
    "inc",
    re.IGNORECASE,
)
_FILE_SUFFIXES = frozenset({"js", "ts", "go", "rb", "cs", "kt", "hs"})  # of two letters, and no country's
# RFC 2606: nobody's addresses. "git@…" is how a repository is addressed, not a person.
_NOBODY = re.compile(r"(?:.*\.)?(?:example\.(?:com|org|net)|example|test|invalid|localhost)", re.IGNORECASE)


def _url_passwords(text: str) -> Iterator[Secret]:
    for match in re.finditer("://", text):
        credentials = _CREDENTIALS.match(text, match.end())
        if credentials and not _TEMPLATE.search(credentials[1]):
            yield Secret(*credentials.span(1), "url-password")


def _addresses(text: str, others: Sequence[Secret]) -> Iterator[Secret]:
    """E-mail addresses, the last one first: where one ends depends on the secret that is taken out behind it."""
    at, following, left = text.rfind("@"), len(text), len(others)
    while at >= 0:
        while left and others[left - 1].start > at:
            left -= 1
            following = min(following, others[left].start)
        begin = others[left - 1].end if left else 0
        start = at
        while start > max(begin, at - 64) and text[start - 1] in _LOCAL:
            start -= 1
        if start < at and text[start:at] != "git" and (end := _domain_end(text, at + 1, following)):
            yield Secret(start, end, "email")
            following = start
        at = text.rfind("@", 0, at)


def _domain_end(text: str, start: int, limit: int) -> int:
    match = _DOMAIN.match(text, start, limit)
    # In code `x@weights.to(device)` is a product of matrices.
    if not match or text[match.end() : min(match.end() + 1, limit)] == "(" or _NOBODY.fullmatch(match[0]):
        return 0
    top = match[0].rpartition(".")[2]
    country = len(top) == 2 and top.isalpha() and top.islower() and top not in _FILE_SUFFIXES
    return match.end() if country or _GENERIC_TLD.fullmatch(top) else 0


# --- Values assigned to telling names ---------------------------------------------------------------------------------

_NAME = re.compile(
    r"p(?:assw|assphrase|wd|rivate_?key)|secret|token(?!i[sz])|a(?:pi[_-]?key|ccess_?key|uth_?key)|c(?:redential|lient_?key)"
)
_VALUE = re.compile(
    r"""
    [\w\-]{0,40}+ ["'\])]{0,2}+ [ \t]{0,8}+             # the rest of the name, as in db["password_main"]
    (?: : [ \t]? [A-Za-z_][\w.\[\]|]{0,40}+ [ \t]{0,2}+ (?==) )?   # a type, as in password: str = …
    (?: =>|:=|={1,3}|!=|[:,(] )
    (?: [ \t]{0,8}+ [A-Za-z]{0,2} (["'`]) ([^"'`\s<>]{8,512}+) \1  # a literal
      | (?<==) ([A-Za-z0-9+/\-]{16,512}+) )              # or NAME=value, as a shell writes it
    """,
    re.VERBOSE,
)
_WORDS = re.compile(r"[A-Za-z]*+\d{0,3}+(?:[._\-/: ][A-Za-z]*+\d{0,3}+)*+")


def _assigned(text: str) -> Iterator[Secret]:
    # lower() keeps every position, but for the one capital whose small letter takes two characters.
    for name in _NAME.finditer(text.replace("\u0130", "i").lower()):
        value = _VALUE.match(text, name.end())
        if not value:
            continue
        kind = "password" if name[0].startswith(("pass", "pwd")) else "secret"
        if value[2] and _is_secret(value[2], password=kind == "password"):
            yield Secret(*value.span(2), kind)
        elif value[3] and sum(c.isdigit() for c in value[3]) >= 4 and _is_secret(value[3], password=False):
            yield Secret(*value.span(3), kind)


def _is_secret(value: str, *, password: bool) -> bool:
    if _TEMPLATE.search(value) or value.startswith(("http://", "https://", "/", "./")):
        return False
    digits = sum(c.isdigit() for c in value)
    if password:  # letters and something else, in no more than one word: "Summer2024", "p@ssw0rd!", not "old-password"
        plain = value.isalpha() or (_WORDS.fullmatch(value) is not None and not value.isalnum())
        return not plain and any(c.isalpha() for c in value) and _bits_per_character(value) >= 2.5
    return len(value) >= 16 and digits >= 2 and not _WORDS.fullmatch(value) and _bits_per_character(value) >= 3.0


def _bits_per_character(value: str) -> float:
    """Shannon entropy of a text's characters."""
    size = len(value)
    return -sum(n / size * math.log2(n / size) for n in Counter(value).values())
