"""What in code belongs to a person and is no secret: telephone, card and account numbers, addresses of machines, names.

Each kind is one that can be told without guessing: a card by its issuer's digits and Luhn's sum (ISO/IEC 7812-1), an
account by its country's length and its remainder by 97 (ISO 13616), an address by being public (RFC 6890) and no
version, a telephone number by its country's + (ITU-T E.164) or the North American form, a name by the tag before it.

A find neither begins where another could end nor ends where another could begin, and a placeholder's corners count as
the end of the text: `redact` builds on both. Lengths are bounded, and the time is linear in the text.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

# Before a number: nothing that it could be the end of. After one: nothing that could begin another.
_BEFORE = r"(?<![\w+=./\-])"
_AFTER = r"(?![\w+(@=]|[./\-]\w)"

# The text with every digit as 0, capital as A, other hexadecimal digit as a: what follows finds the few texts that are
# worth a closer look twenty times as fast as the patterns themselves would.
_SHAPE = bytes(
    48 if c in b"0123456789" else 65 if 65 <= c <= 90 else 97 if c in b"abcdef" else c if c in b" .:-+(){}" else 120
    for c in range(256)
)
_GROUPED = (b"000000000000000", b"0000 0000 0000 0", b"0000-0000-0000-0", b"0000 000000 0", b"0000-000000-0")
_NORTH_AMERICAN = (b"000-000-0000", b")000-0000", b") 000-0000")  # (years have the form 0000-0000)
_COLONS = re.compile(rb"0[0Aa]{3}:[:0Aa]")
_COUNTRY = re.compile(rb"AA00 ?[0A]{4} ?[0A]{4}")
# And of the text itself: what begins with a fixed character is found as fast. (A version has fewer dots, `i+1` fewer
# digits.)
_DOTTED = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_INTERNATIONAL = re.compile(r"\+[1-9][0-9 .\-/()]{9}")

_IPV4 = re.compile(
    rf"(?:{_BEFORE}|(?<=://))[1-9][0-9]{{0,2}}\.(?:(?:0|[1-9][0-9]{{0,2}})\.){{2}}[1-9][0-9]{{0,2}}"
    r"(?![\w+(@=\-]|\.\w)"
)
_IPV6 = re.compile(r"(?:(?<![\w+=./\-:])|(?<=://\[))[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}+(?![\w+(@=:\-]|\.\w)")
_CARD = re.compile(
    rf"{_BEFORE}[3-6][0-9]{{3}}([ \-]?)(?:[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}|[0-9]{{6}}\1[0-9]{{5}}){_AFTER}"
)
_PHONE = re.compile(
    rf"{_BEFORE}(?:\+[1-9][0-9]{{0,2}}(?:[ .\-/]?(?:\([0-9]{{1,4}}\)|[0-9]{{1,5}})){{2,6}}+"
    rf"|(?:\([2-9][0-9][0-9]\)[ ]?|[2-9][0-9][0-9]-)[2-9][0-9][0-9]-[0-9]{{4}}){_AFTER}"
)
_IBAN = re.compile(rf"{_BEFORE}[A-Z]{{2}}[0-9][0-9](?=[ ]?[A-Z0-9]{{4}})")
_NAME = r"[^\W\d_](?:[\w’\-]|[.'](?=\w)|\.(?=[ ][^\W\d_])){0,30}+"
_AUTHOR = re.compile(
    rf"""(?:(?<![\w@])[@\\]author:?[ \t]+|(?<!\w)__author__[ \t]{{0,4}}=[ \t]{{0,4}}["'])"""
    rf"({_NAME}(?:[ ]{_NAME}){{0,4}}+)(?![\w+(@=]|[./\-]\w)"
)

# ISO 13616: how long the account numbers of a country are.
_IBAN_LENGTH = {
    country: int(length)
    for length, countries in (
        line.split(":")
        for line in (
            "15:NO",
            "16:BE",
            "18:DK FI FO GL NL",
            "19:MK SI",
            "20:AT BA EE KZ LT LU XK",
            "21:CH HR LI LV",
            "22:BG BH CR DE GB GE IE ME RS VA",
            "23:AE GI IL IQ TL",
            "24:AD CZ ES MD PK RO SA SE SK TN VG",
            "25:LY PT ST",
            "26:IS TR",
            "27:FR GR IT MC MR SM",
            "28:AL AZ BY CY DO GT HU LB NI PL SV",
            "29:BR EG PS QA UA",
            "30:JO KW MU",
            "31:MT SC",
        )
    )
    for country in countries.split()
}


def personal_data(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of each; those of different kinds may overlap."""
    shape = text.encode("ascii", "replace").translate(_SHAPE)
    for pattern, kind, is_one, is_likely in (
        (_IPV4, "ip-address", _is_public, _DOTTED.search(text)),
        (_IPV6, "ip-address", _is_public, _COLONS.search(shape)),
        (_CARD, "card-number", _is_card, any(grouped in shape for grouped in _GROUPED)),
        (_PHONE, "phone", _is_phone, any(form in shape for form in _NORTH_AMERICAN) or _INTERNATIONAL.search(text)),
    ):
        if is_likely:
            yield from ((*match.span(), kind) for match in pattern.finditer(text) if is_one(match[0]))
    if _COUNTRY.search(shape):
        ends = ((match.start(), _iban_end(text, match.start())) for match in _IBAN.finditer(text))
        yield from ((start, end, "iban") for start, end in ends if end)
    if "@author" in text or "\\author" in text or "__author__" in text:
        yield from ((*match.span(1), "author-name") for match in _AUTHOR.finditer(text))


def _is_public(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        return parsed.is_global
    # "4.2.1.3" is a version, "1.3.101.112" an object identifier. One public address in 200 looks like either.
    if address.startswith(("1.2.", "1.3.")):
        return False
    return parsed.is_global and not parsed.is_multicast and max(parsed.packed) >= 64 and len(set(parsed.packed)) > 2


def _is_card(number: str) -> bool:
    digits = [int(c) for c in number if c.isdigit()]
    first = "".join(map(str, digits[:4]))
    if len(digits) == 15:
        issued = first[:2] in ("34", "37")
    else:
        issued = (
            first[0] == "4" or "51" <= first[:2] <= "55" or first[:2] == "65" or first == "6011"
        )  # fmt: skip
    # 4111 1111 1111 1111 and its like are what a maker of payments hands out for tests.
    return issued and len(set(digits)) > 4 and _luhn(digits)


def _luhn(digits: list[int]) -> bool:
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_phone(number: str) -> bool:
    digits = [c for c in number if c.isdigit()]
    # 555-0100 to 555-0199 are kept for fiction; a number of one or two digits throughout is an example.
    fiction = "".join(digits[-7:-2]) == "55501"
    return 10 <= len(digits) <= 15 and len(set(digits)) > 3 and not fiction


def _iban_end(text: str, start: int) -> int:
    """Where the account number ends that begins here; 0 where none does."""
    length = _IBAN_LENGTH.get(text[start : start + 2], 0)
    found: list[str] = []
    at = start
    while len(found) < length and at < len(text):
        character = text[at]
        if character.isascii() and (character.isdigit() or character.isupper()):
            found.append(character)
        elif character != " " or len(found) % 4:
            return 0
        at += 1
    if len(found) < length or not length or _ENDS.match(text, at) is None:
        return 0
    number = "".join(found[4:] + found[:4])
    return at if int("".join(str(int(c, 36)) for c in number)) % 97 == 1 else 0


_ENDS = re.compile(_AFTER)
