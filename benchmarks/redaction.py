"""Recall on seeded secrets and personal data, and false positives per MB of published code.

    python benchmarks/redaction.py --quick --json

Recall: each secret and number is made anew from a seed and planted into a line of real code in one of several ways; it
counts as found where nothing of it is left. False positives: whatever is taken out of the standard library and the
installed packages, their tests apart, which hold real keys on purpose. E-mail addresses and names in author tags are
real there as well and are counted apart (`persons_per_mb`).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import string
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from neuralforge.data.redact import find_secrets, redact
from neuralforge.data.source import read_source_tree

ALNUM = string.ascii_letters + string.digits
TESTS = re.compile(r"(?:^|/)(?:tests?|testing|idle_test)/|(?:^|/)test_")
PERSONS = ("email", "author-name")
AROUND = ("x = '{}'", "    call({!r}, 1)", '{{"key": "{}"}}', "# see {} for more", "value: {}", "    return f('{}')")
ASSIGNED = ("password = '{}'", 'api_key: str = "{}"', "client_secret='{}'", "DB_PASSWORD = '{}'")


def some(draw: random.Random, alphabet: str, size: int) -> str:
    """So many characters of an alphabet."""
    return "".join(draw.choices(alphabet, k=size))


def card(draw: random.Random) -> str:
    """A number with a right sum, in one piece or in groups."""
    digits = draw.choice(("4", "51", "55")).ljust(2, "7") + some(draw, string.digits, 13)
    total = sum(
        sum(divmod(int(digit) * (2 if place % 2 == 0 else 1), 10)) for place, digit in enumerate(reversed(digits))
    )
    digits += str(-total % 10)
    separator = draw.choice(("", " ", "-"))
    return separator.join(digits[at : at + 4] for at in range(0, 16, 4))


def iban(draw: random.Random) -> str:
    """An account in a country whose accounts are digits."""
    country, size = draw.choice((("DE", 22), ("PL", 28), ("AT", 20), ("ES", 24), ("BE", 16)))
    account = some(draw, string.digits, size - 4)
    check = 98 - int("".join(str(int(c, 36)) for c in f"{account}{country}00")) % 97
    number = f"{country}{check:02}{account}"
    return number if draw.random() < 0.5 else " ".join(number[at : at + 4] for at in range(0, size, 4))


def phone(draw: random.Random) -> str:
    """An international number as people write it, or a North American one."""
    if draw.random() < 0.3:
        return f"{draw.randint(201, 989)}-{draw.randint(201, 989)}-{some(draw, string.digits, 4)}"
    country, area = draw.choice(("+49", "+44", "+1", "+33", "+351")), draw.randint(20, 799)
    rest = some(draw, string.digits, 7)
    return draw.choice(
        (f"{country} {area} {rest}", f"{country}{area}{rest}", f"{country} ({area}) {rest[:3]} {rest[3:]}")
    )


def address(draw: random.Random) -> str:
    """A public address of either kind."""
    if draw.random() < 0.3:
        return "2a02:" + ":".join(f"{draw.randint(1, 65535):x}" for _ in range(7))
    first = draw.choice((23, 45, 62, 78, 93, 142, 185, 212))
    return f"{first}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"


def jwt(draw: random.Random) -> str:
    """Header, body, signature."""

    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part({'sub': some(draw, string.digits, 9)})}.{some(draw, ALNUM, 43)}"


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "aws-key": lambda draw: "AK" + "IA" + some(draw, string.ascii_uppercase + "234567", 16),
    "github-token": lambda draw: draw.choice(("gh" + "p_", "gh" + "s_")) + some(draw, ALNUM, 36),
    "gitlab-token": lambda draw: "glp" + "at-" + some(draw, ALNUM, 20),
    "slack-token": lambda draw: "xox" + "b-" + some(draw, string.digits, 12) + "-" + some(draw, ALNUM, 24),
    "stripe-key": lambda draw: "sk_" + "live_" + some(draw, ALNUM, 24),
    "hf-token": lambda draw: "h" + "f_" + some(draw, ALNUM, 34),
    "openai-key": lambda draw: "sk-" + "proj-" + some(draw, ALNUM, 64),
    "google-key": lambda draw: "AI" + "za" + some(draw, ALNUM + "-_", 35),
    "jwt": jwt,
    "private-key": lambda draw: (
        "-----BEGIN PRIVATE" + " KEY-----\n" + some(draw, ALNUM + "+/", 200) + "\n-----END PRIVATE" + " KEY-----"
    ),
    "password": lambda draw: some(draw, string.ascii_letters, 6) + some(draw, string.digits, 3) + draw.choice("!#%*?"),
    "secret": lambda draw: some(draw, ALNUM, 32),
    "email": lambda draw: f"{some(draw, string.ascii_lowercase, 6)}.{some(draw, string.ascii_lowercase, 5)}@corp.com",
    "card-number": card,
    "iban": iban,
    "phone": phone,
    "ip-address": address,
    "author-name": lambda draw: (
        f"{some(draw, string.ascii_lowercase, 5).title()} {some(draw, string.ascii_lowercase, 7).title()}"
    ),
}


def planted(kind: str, secret: str, draw: random.Random) -> str:
    """A line of code with it."""
    if kind == "author-name":
        return f" * @author {secret}"
    if kind in ("password", "secret"):
        return draw.choice([line for line in ASSIGNED if ("pass" in line.lower()) == (kind == "password")]).format(
            secret
        )
    return draw.choice(AROUND).format(secret)


def recall(code: list[str], count: int, seed: int) -> tuple[dict[str, float], float]:
    """By kind, and over all."""
    found: Counter[str] = Counter()
    for kind, make in MAKERS.items():
        draw = random.Random(f"{seed} {kind}")  # noqa: S311
        for _ in range(count):
            secret = make(draw)
            lines = draw.choice(code).split("\n")
            lines.insert(draw.randrange(len(lines) + 1), planted(kind, secret, draw))
            found[kind] += secret not in redact("\n".join(lines))[0]
    return {kind: found[kind] / count for kind in MAKERS}, found.total() / (count * len(MAKERS))


def files(limit: int) -> Iterator[str]:
    """Texts of the standard library and the installed packages, up to so many characters."""
    paths = sysconfig.get_paths()
    characters = 0
    for place in dict.fromkeys((paths["stdlib"], paths["purelib"])):
        room = characters + limit // 2
        for file in read_source_tree(Path(place), languages=["python"]):
            if TESTS.search(file.path):
                continue
            characters += len(file.text)
            yield file.text
            if characters > room:
                break


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 MB of code and 20 of each kind, for 40 MB and 200")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", metavar="KIND", help="print what of this kind was taken out of the code")
    args = parser.parse_args()
    code = list(files(4_000_000 if args.quick else 40_000_000))
    megabytes = sum(map(len, code)) / 1e6
    by_kind: Counter[str] = Counter()
    started = time.process_time()
    for text in code:
        secrets = find_secrets(text)
        by_kind.update(secret.kind for secret in secrets)
        if args.show:
            for secret in secrets:
                if secret.kind == args.show:
                    print(repr(text[max(0, secret.start - 40) : secret.end + 20]))
    seconds = time.process_time() - started
    each, overall = recall([text for text in code if len(text) < 4_000], 20 if args.quick else 200, args.seed)
    persons = sum(by_kind[kind] for kind in PERSONS)
    figures = {
        "megabytes": round(megabytes, 1),
        "recall": round(overall, 4),
        "recall_by_kind": {kind: round(value, 4) for kind, value in each.items()},
        "false_positives_per_mb": round((by_kind.total() - persons) / megabytes, 3),
        "persons_per_mb": round(persons / megabytes, 3),
        "by_kind": dict(by_kind.most_common()),
        "mb_per_second": round(megabytes / seconds, 1),
    }
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
