"""What belongs to a person is taken out where it can be told, and what only looks like it stays.

No real person's data: each number is put together while the tests run.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralforge.data.personal import personal_data
from neuralforge.data.redact import find_secrets, redact, redact_pair


def luhn_completed(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


def card(seed: int, start: str = "4", size: int = 16) -> str:
    return luhn_completed(start + "".join(random.Random(seed).choices("0123456789", k=size - 1 - len(start))))


def iban(seed: int, country: str = "DE", size: int = 22) -> str:
    account = "".join(random.Random(seed).choices("0123456789", k=size - 4))
    number = int("".join(str(int(c, 36)) for c in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02}{account}"


def by_four(text: str, separator: str = " ") -> str:
    return separator.join(text[at : at + 4] for at in range(0, len(text), 4))


FOUND = {
    "card": ("card-number", card(1)),
    "card in groups": ("card-number", by_four(card(2))),
    "card with dashes": ("card-number", by_four(card(3, "5312"), "-")),
    "fifteen digits": ("card-number", card(4, "37", 15)),
    "german account": ("iban", iban(1)),
    "account in groups": ("iban", by_four(iban(2))),
    "french account": ("iban", iban(3, "FR", 27)),
    "dutch account": ("iban", iban(4, "NL", 18)),
    "IPv4": ("ip-address", "93.184." + "216.34"),
    "IPv6": ("ip-address", "2a02:8108:" + "96c0:3e:a1::7b"),
    "mobile": ("phone", "+49 170 " + "2384719"),
    "country in one": ("phone", "+4917023" + "84719"),
    "with brackets": ("phone", "+44 (0) 20 " + "7946 1382"),
    "north america": ("phone", "415-" + "867-2391"),
    "area in brackets": ("phone", "(415) " + "867-2391"),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize(
    "around", ["x = '{}'\n", "{}", "# call {}.\n", "f({}, 1)", "[{}]", "é {}, é", "a: {}\n", "<b>{}</b>"]
)
def test_what_belongs_to_a_person_is_taken_out_whole(name: str, around: str) -> None:
    kind, number = FOUND[name]
    assert redact(around.format(number)) == (around.format(f"<REDACTED:{kind}>"), Counter({kind: 1}))


@pytest.mark.parametrize(
    ("code", "left"),
    [
        (" * @author Jane Doe\n", " * @author |\n"),
        (" * @author  Jörg O'Neil-Smith, 2019\n", " * @author  |, 2019\n"),
        ('__author__ = "Jane Doe and others"\n', '__author__ = "|"\n'),
        ("/// \\author J. R. Doe\n", "/// \\author |\n"),
        (" * @author: jdoe\n", " * @author: |\n"),
        (" * @author Jane Doe (Example)\n", " * @author | (Example)\n"),
    ],
)
def test_a_name_in_an_authors_tag_is_taken_out(code: str, left: str) -> None:
    assert redact(code) == (left.replace("|", "<REDACTED:author-name>"), Counter({"author-name": 1}))


def test_a_name_and_its_address_are_two() -> None:
    code = " * @author Jane Doe <jane" + "@" + "corp.com>\n"
    assert redact(code)[0] == " * @author <REDACTED:author-name> <<REDACTED:email>>\n"


def test_the_host_of_an_address_is_taken_out_and_its_port_stays() -> None:
    host = "93.184." + "216.34"
    assert redact(f"url = 'http://{host}:8080/x'")[0] == "url = 'http://<REDACTED:ip-address>:8080/x'"


@pytest.mark.parametrize(
    "code",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.1.77", "172.16.0.5", "169.254.1.9", "203.0.113.7"),
        *(
            "version = '1.2.3.4'",
            "2.5.4.3",
            "1.3.6.1.4.1.311",
            "1.3.101.112",
            "Chrome/120.0.0.0",
            "91.0.4472.124",
            "300.1.2.200",
        ),
        *("v93.184.216.34", "93.184.216.34.5", "8.8.8.8", "255.255.255.0"),
        *("std::abs", "add::bad", "fe80::1", "::1", "2001:db8::1", "a[1:2]", "12:30:45", "3000:x"),
        *("4111111111111111", "4242 4242 4242 4242", "1234567812345678", "0x4539578763621486", "9007199254740993"),
        *("x = 4539578763621487", "id_" + card(7), card(8) + "0", "1" * 16),
        *("DE00123456781234567890", "GB82ABCD", "SHA256", "UTF16LE", iban(5)[:-1] + "X", "AB12CDEF12345678"),
        *("+1", "x+1234567890", "a +5", "+0100", "2024-01-31T10:00:00+02:00", "1e+10", "555-0199", "415-555-0132"),
        *("+1 415-555-0132", "+10000000000", "123-45-6789", "2024-10-2024", "200-300-40000"),
        *("@author", "@author\n", "the author Jane", "author = 'Jane'", "x@author Jane", "@authors_of(x)"),
    ],
)
def test_what_only_looks_like_it_stays(code: str) -> None:
    for text in (code, f"x = '{code}'\n"):
        assert redact(text) == (text, Counter())


@pytest.mark.parametrize(
    ("make", "kind", "country"),
    [(card, "card-number", ""), *((iban, "iban", name) for name in ("DE:22", "GB:22", "PL:28"))],
)
def test_one_wrong_digit_is_no_number_of_anybody(make, kind: str, country: str) -> None:  # type: ignore[no-untyped-def]
    seen = 0
    for seed in range(40):
        number = make(seed, country[:2], int(country[3:])) if country else make(seed)
        found = redact(f"'{number}'")[1]
        assert found == {kind: 1}
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        seen += redact(f"'{wrong}'")[1][kind]
    assert seen == 0


pieces = st.sampled_from(
    [
        *(number for _, number in FOUND.values()),
        *(
            FOUND["card"][1][:8],
            "+",
            "+49",
            "(",
            ")",
            "(415)",
            "-",
            ".",
            "/",
            "://",
            "://[",
            "]",
            ":",
            "@",
            " ",
            "\n",
            "'",
            "=",
        ),
        *(
            "8",
            "93.184.",
            "216.34",
            "2a02:",
            "::",
            "DE",
            "@author ",
            "@author Jane",
            "Jane Doe",
            "__author__ = '",
            "password = '",
        ),
        *(
            "TOKEN=",
            "jane@corp.com",
            "@corp.com",
            "u:p@",
            "é",
            "<",
            ">",
            "<REDACTED:phone>",
            "x",
            "A",
            "ghp_" + "a1B2" * 9,
        ),
        *("a" * 40, "٣", "867-2391", "git"),
    ]
)
texts = st.lists(pieces, max_size=12).map("".join)


@settings(deadline=None, max_examples=400)
@given(texts)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once, _ = redact(text)
    assert redact(once) == (once, Counter())


@settings(deadline=None, max_examples=200)
@given(texts, st.data())
def test_a_pair_is_redacted_as_the_one_text_that_it_is(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    before, after, found = redact_pair(text[:cut], text[cut:])
    assert (before + after, found) == redact(text)
    assert all(
        secret.end <= following.start
        for secret, following in zip(find_secrets(text), find_secrets(text)[1:], strict=False)
    )


HOSTILE = [
    "1.",
    "1 ",
    "1",
    "+1",
    "+1 ",
    "(415) ",
    "a:",
    ":",
    "2a02:",
    "AA00",
    "AA00 ",
    "@author ",
    "@author A ",
    "A.",
    "0000-",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_text_and_no_faster(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit)) + FOUND["IPv4"][1] + " " + iban(1) + " @author A"
        best = math.inf
        for _ in range(3):
            started = time.thread_time()
            list(personal_data(text))
            best = min(best, time.thread_time() - started)
        return best

    assert seconds(160_000) < 16 * max(seconds(20_000), 1e-3)
