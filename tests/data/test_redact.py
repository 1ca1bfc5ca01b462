"""Secrets are found wherever they stand, ordinary code is left alone, and redacting twice is redacting once.

No secret stands in this file: each is put together while the tests run, so that no scanner has reason to stop a push.
"""

from __future__ import annotations

import base64
import json
import math
import random
import string
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuralforge.data import secret_formats
from neuralforge.data.redact import find_secrets, redact, redact_pair
from neuralforge.data.source import read_source_tree

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
ALNUM = LOWER + UPPER + DIGITS
URL_SAFE = ALNUM + "-_"
HEX = DIGITS + "abcdef"


def some(alphabet: str, size: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=size))


def jwt() -> str:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return (
        f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': '1234567890', 'iat': 1516239022})}.{some(URL_SAFE, 43)}"
    )


def _each(kind: str, starts: str, alphabet: str, size: int) -> list[tuple[str, str, str]]:
    return [(kind, start, some(alphabet, size)) for start in starts.split()]


# kind, start, the rest as its maker hands it out
SECRETS = [
    *_each("aws-key", "AKIA ASIA ABIA ACCA", UPPER + "234567", 16),
    *_each("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", ALNUM, 36),
    *_each("github-token", "github_pat_", ALNUM + "_", 82),
    *_each("gitlab-token", "glpat- gldt- glrt- glptt- glcbt- glimt- glagent- glsoat- gloas- glft-", URL_SAFE, 20),
    *_each("slack-token", "xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs-", DIGITS, 12),
    ("slack-token", "xapp-", f"1-A{some(UPPER + DIGITS, 10)}-{some(DIGITS, 13)}-{some(HEX, 64)}"),
    *_each("slack-webhook", "hooks.slack.com/services/ hooks.slack.com/workflows/", ALNUM + "/", 44),
    *_each("neuralforge-invitation", "nfj_", URL_SAFE, 43),
    *_each("stripe-key", "sk_live_ sk_test_ rk_live_ rk_test_", ALNUM, 24),
    *_each("stripe-key", "whsec_", ALNUM, 32),
    *_each("hf-token", "hf_ api_org_", ALNUM, 34),
    *_each("openai-key", "sk-proj- sk-svcacct- sk-admin- sk-or-v1-", URL_SAFE, 64),
    *_each("openai-key", "sk-", ALNUM, 48),
    *_each("anthropic-key", "sk-ant-", URL_SAFE, 95),
    *_each("google-key", "AIza", URL_SAFE, 35),
    *_each("google-key", "GOCSPX-", URL_SAFE, 28),
    *_each("google-key", "ya29.", URL_SAFE, 60),
    *_each("npm-token", "npm_", ALNUM, 36),
    *_each("pypi-token", "pypi-AgE", URL_SAFE, 120),
    ("sendgrid-key", "SG.", f"{some(URL_SAFE, 22)}.{some(URL_SAFE, 43)}"),
    *_each("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", HEX, 64),
    *_each("databricks-token", "dapi", HEX, 32),
    *_each("shopify-token", "shpat_ shpca_ shppa_ shpss_", HEX, 32),
    *_each("vault-token", "hvs. hvb.", URL_SAFE, 90),
    *_each("azure-key", "AccountKey= SharedAccessKey=", ALNUM + "+/", 86),
    *_each("linear-key", "lin_api_", ALNUM, 40),
    *_each("age-key", "AGE-SECRET-KEY-1", UPPER + DIGITS, 58),
    ("jwt", "eyJ", jwt()[3:]),
]
IDS = [start for _, start, _ in SECRETS]


def private_key(name: str = "RSA PRIVATE KEY", lines: int = 8) -> str:
    body = "\n".join(some(ALNUM + "+/", 64, seed) for seed in range(lines))
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----"


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_each_known_format_is_tested_here() -> None:
    assert set(IDS) == set(secret_formats._BY_START)
    assert min(len(start + rest) for _, start, rest in SECRETS) >= secret_formats.SHORTEST


@pytest.mark.parametrize(("kind", "start", "rest"), SECRETS, ids=IDS)
def test_a_secret_of_each_format_is_taken_out_whole_wherever_it_stands(kind: str, start: str, rest: str) -> None:
    for around in ("key = '|'\n", "|", "export X=|\n", "f(|, 1)", '{"a": "|"}', "é|é", "x\n|\ny", "<|>", "`|`", "[|]"):
        text, found = redact(around.replace("|", start + rest))
        assert text == around.replace("|", f"<REDACTED:{kind}>")
        assert found == {kind: 1}


@pytest.mark.parametrize(("kind", "start", "rest"), SECRETS, ids=IDS)
def test_a_beginning_alone_is_no_secret(kind: str, start: str, rest: str) -> None:
    for text in (start, f"'{start}'", f"{start}{rest[:3]}", f"startswith('{start}')", f"r'{start}[A-Za-z0-9]{{36}}'"):
        assert redact(text) == (text, Counter())


@pytest.mark.parametrize("seed", range(20))
def test_a_file_full_of_secrets_loses_all_of_them_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    chosen = draw.sample(SECRETS, 12)
    lines = [f"line {number} = '{start}{rest}'" for number, (_, start, rest) in enumerate(chosen)]
    text, found = redact("\n".join(lines))
    assert text == "\n".join(f"line {n} = '<REDACTED:{kind}>'" for n, (kind, _, _) in enumerate(chosen))
    assert found == Counter(kind for kind, _, _ in chosen)


# --- Private keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "PRIVATE KEY",
        *(f"{kind} PRIVATE KEY" for kind in ("RSA", "EC", "OPENSSH", "ENCRYPTED")),
        "PGP PRIVATE KEY BLOCK",
    ],
)
def test_a_private_key_is_taken_out_from_its_first_line_to_its_last(name: str) -> None:
    key = private_key(name)
    assert redact(f"before\n{key}\nafter\n") == ("before\n<REDACTED:private-key>\nafter\n", {"private-key": 1})


def test_a_private_key_in_quotes_on_one_line_is_taken_out() -> None:
    for key in (private_key().replace("\n", "\\n"), private_key().replace("\n", "\\n'\n    '")):
        text, found = redact(f"key = '{key}'\nx = 1\n")
        assert text == "key = '<REDACTED:private-key>'\nx = 1\n"
        assert found == {"private-key": 1}


def test_a_private_key_that_was_cut_off_is_taken_out_as_far_as_it_goes() -> None:
    whole = private_key(lines=20)
    cut = whole[: whole.index("-----END") - 100]
    text, found = redact(f"a = 1\n{cut}")
    assert found == {"private-key": 1}
    assert not any(line in text for line in whole.splitlines()[1:18])
    assert text.startswith("a = 1\n<REDACTED:private-key>")


def test_two_private_keys_are_two_and_what_stands_between_them_stays() -> None:
    text, found = redact(f"{private_key()}\nmiddle = 1\n{private_key('EC PRIVATE KEY')}\n")
    assert text == "<REDACTED:private-key>\nmiddle = 1\n<REDACTED:private-key>\n"
    assert found == {"private-key": 2}


def test_code_that_only_speaks_of_private_keys_stays() -> None:
    begin, end = "-----BEGIN RSA PRIVATE" + " KEY-----", "-----END RSA PRIVATE" + " KEY-----"
    code = f'if data.startswith("{begin}"):\n    body = data[len("{begin}") : data.index("{end}")]\n'
    assert redact(code) == (code, Counter())
    speech = "# PRIVATE" + " KEY: no key begins here\n"
    assert redact(speech) == (speech, Counter())
    certificate = private_key("CERTIFICATE")
    assert redact(certificate) == (certificate, Counter())


# --- E-mail -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "jane.doe|corp.com",
        "j|uni-bonn.de",
        "first+tag|mail.corp.co.uk",
        "x_y%z|a.b.c.org",
        "JANE|CORP.COM",
        "me|corp.io",
    ],
)
@pytest.mark.parametrize("around", ["# by {}\n", "<{}>", "'{}'", "mailto:{}", "{},", "({})", "{}. Then"])
def test_an_address_of_a_person_is_taken_out(address: str, around: str) -> None:
    text, found = redact(around.format(address.replace("|", "@")))
    assert found == {"email": 1}
    assert text == around.format("<REDACTED:email>")


@pytest.mark.parametrize(
    "code",
    [
        "x = weights@bias.to(device)",
        "y = a @ b.T",
        "@app.get('/')",
        "@functools.wraps(f)\ndef g(): ...",
        "git clone git@github.com:team/project.git",
        "user@example.com",
        "me@sub.example.org",
        "root@localhost",
        "x@y.test",
        "import x from '@scope/package'",
        "package@1.2.3",
        "a@b.js",
        "a@module.ts",
        "R@vec.norm()",
        "@media screen",
        "x@",
        "@",
        "@@",
        "a@b",
    ],
)
def test_an_at_sign_in_code_is_no_address(code: str) -> None:
    assert redact(code) == (code, Counter())


def test_an_address_ends_where_a_secret_begins_behind_it() -> None:
    token = "ghp_" + some(ALNUM, 36)
    assert redact(f"jane@corp.com{token}")[0] == "<REDACTED:email><REDACTED:github-token>"


# --- Addresses with passwords -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("postgres://admin:hunter2x|db.corp.com:5432/x", "postgres://admin:<REDACTED:url-password>|db.corp.com:5432/x"),
        ("redis://:s3cr3t|10.0.0.1", "redis://:<REDACTED:url-password>|10.0.0.1"),
        ("https://bot:abc%20d|localhost/", "https://bot:<REDACTED:url-password>|localhost/"),
        ("amqp://u:p|host", "amqp://u:<REDACTED:url-password>|host"),
    ],
)
def test_a_password_in_an_address_is_taken_out_and_the_address_stays(url: str, redacted: str) -> None:
    assert redact(f"'{url.replace('|', '@')}'")[0] == f"'{redacted.replace('|', '@')}'"


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:{password}@host",
        "postgres://user:${PASSWORD}@host",
        "postgres://user:$PASSWORD@host",
        "postgres://user:%s@host",
        "postgres://%(user)s:%(password)s@host",
        "postgres://user:{{ password }}@host",
        "postgres://user:{}@host",
        "postgres://user:***@host",
        "postgres://user:<password>@host",
        "postgres://user@host:5432",
        "https://host:8080/path",
        "http://[::1]:80/",
    ],
)
def test_an_address_with_a_place_for_a_password_stays(url: str) -> None:
    assert redact(f"url = '{url}'") == (f"url = '{url}'", Counter())


# --- Values assigned to telling names ---------------------------------------------------------------------------------

_HARD = some(ALNUM, 24, 5)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("password = '|'", "password"),
        ('DB_PASSWORD: str = "|"', "password"),
        ("config['passwd'] = '|'", "password"),
        ('{"pwd": "|"}', "password"),
        ("connect(password='|')", "password"),
        ("passphrase := `|`", "password"),
        ("if password == '|':", "password"),
        ("String apiKey = \"|\";", "secret"),
        ("api_key='|'", "secret"),
        ("API-KEY: '|'", "secret"),
        ("secret_token => '|'", "secret"),
        ("client_secret = b'|'", "secret"),
        ("ACCESS_KEY=|\n", "secret"),
        ("export AUTH_TOKEN=|\n", "secret"),
        ("set_token('|')", "secret"),
    ],
)  # fmt: skip
def test_a_value_given_to_a_telling_name_is_taken_out_and_its_quotes_stay(code: str, kind: str) -> None:
    assert redact(code.replace("|", _HARD)) == (code.replace("|", f"<REDACTED:{kind}>"), {kind: 1})


@pytest.mark.parametrize("password", ["Summer2024", "p@ssw0rd!", "correct4horse", "qwerty!23", "tr0ub4dor&3"])
def test_a_password_that_a_person_chose_is_taken_out(password: str) -> None:
    assert redact(f"password = '{password}'")[1] == {"password": 1}


ORDINARY = """
password = "password"
password = "changeme"
password = os.environ["DB_PASSWORD"]
password = getpass.getpass("Password for user: ")
password = get_password(user, "old-password")
password_field = "//input[@type='password']"
password_url = "https://host/reset/1a2b3c4d5e6f"
label = "Enter your password:"
token = tokens[index + 1]
token = "identifier"
token_type = "access_token"
tokenizer = "bert-base-uncased-finetuned-2019"
TOKENS = {"lparen": "(", "rparen": ")"}
secret = None
SECRET_NAME = "projects/team/secrets/database"
api_key: str = ""
api_key = "YOUR_API_KEY_HERE"
api_key = "${API_KEY}"
api_key = "<your key>"
headers = {"Authorization": f"Bearer {token}"}
private_key_path = "/etc/ssl/private/server.key"
csrf_token = "{{ csrf_token }}"
passwordless = True
pass_through = "some_value_here"
assert hash == "d41d8cd98f00b204e9800998ecf8427e"
commit = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
uuid = "123e4567-e89b-12d3-a456-426614174000"
image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
integrity = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="
benchmark_test_environment = task_test_dependencies + disk_live_informations
url = "linuxapp-settings-window"
sequence = "ACCAGTTAGCATTAGCATTAGACCA"
half_hf_tokens = map_hf_names(api_org_names)
risk-adjusted, sk-learn, task-sk-scheduler
from sklearn import AKIA, ASIA
eyJustAnIdentifier = eyJ
class SGD(SG.Optimizer): pass
x = a.b@c.d
npm_package_name = npm_config_registry
author = "Jane Doe <jane@example.com>"
"""


@pytest.mark.parametrize("line", [line for line in ORDINARY.splitlines() if line])
def test_ordinary_code_stays(line: str) -> None:
    assert redact(line) == (line, Counter())


def test_ordinary_code_stays_as_a_whole() -> None:
    assert redact(ORDINARY) == (ORDINARY, Counter())


def test_in_the_standard_library_hardly_anything_but_addresses_is_taken_out(library: Path) -> None:
    found: Counter[str] = Counter()
    characters = 0
    patterns = ["[a-z_]*.py", "asyncio/*.py", "email/*.py", "http/*.py", "json/*.py", "unittest/*.py", "urllib/*.py"]
    files = [file for file in read_source_tree(library, patterns=patterns) if not file.path.startswith("test/")]
    for file in files:
        characters += len(file.text)
        found += redact(file.text)[1]
    assert characters > 5_000_000
    # (urllib writes of a password "geheim$parole" and of host[:port] behind that word)
    assert found.total() - found["email"] - found["author-name"] <= 5
    assert found["author-name"] < 1 + characters / 200_000
    assert found["email"] < 1 + characters / 50_000


# --- Laws -------------------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *(start + rest for _, start, rest in SECRETS),
        *IDS,
        *(
            private_key(lines=2),
            private_key(lines=2)[:100],
            "-----BEGIN PRIVATE" + " KEY-----",
            "PRIVATE KEY",
            "-----END",
        ),
        *(_HARD, _HARD * 30, "jane@corp.com", "@", "@corp.com", "git", "a" * 70, ".com", ".", "-", "_", "(", "'", '"'),
        *(
            "`",
            "\n",
            " ",
            "\\n",
            "=",
            "://",
            ":",
            "u:pass1word@",
            "password",
            "password = '",
            "token=",
            'secret: str = "',
        ),
        *("api_key='", "{x}", "$", "<", ">", "<REDACTED:email>", "<REDACTED:password>", "REDACTED", "é", "İ", "\u2028"),
        *("\ud83d", "1234", "Ab1", "/", "http"),
    ]
)
texts = st.lists(pieces, max_size=12).map("".join) | st.text(st.characters(), max_size=60)


@settings(deadline=None, max_examples=600)
@given(texts)
@example("dapi" + "c6" * 16 + "dapi_org_" + "0UAq" * 9)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once, _ = redact(text)
    assert redact(once) == (once, Counter())


@pytest.mark.parametrize(
    "kind", sorted({kind for kind, _, _ in SECRETS} | {"email", "password", "private-key", "secret"})
)
def test_a_mark_is_no_secret_whatever_name_it_is_given_to(kind: str) -> None:
    mark = f"<REDACTED:{kind}>"
    for around in (
        "password = '|'",
        "api_key='|'",
        "TOKEN=|",
        "https://u:|@host/",
        "|@corp.com",
        "'|='",
        "|: '1a2b3c4d'",
    ):
        text = around.replace("|", mark)
        assert redact(text) == (text, Counter())


@settings(deadline=None, max_examples=300)
@given(texts)
def test_secrets_are_in_order_apart_and_counted(text: str) -> None:
    secrets = find_secrets(text)
    ends = [0, *(secret.end for secret in secrets)]
    assert all(end <= secret.start < secret.end for end, secret in zip(ends, secrets, strict=False))
    redacted, found = redact(text)
    assert found == Counter(secret.kind for secret in secrets)
    # All that stands between the secrets stays, to the character.
    parts = [text[end : secret.start] for end, secret in zip(ends, secrets, strict=False)] + [text[ends[-1] :]]
    marks = [f"<REDACTED:{secret.kind}>" for secret in secrets] + [""]
    assert redacted == "".join(part + mark for part, mark in zip(parts, marks, strict=True))


@settings(deadline=None, max_examples=300)
@given(texts, st.data())
def test_a_pair_is_redacted_as_the_one_text_that_it_is(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    before, after, found = redact_pair(text[:cut], text[cut:])
    assert (before + after, found) == redact(text)
    if not found:
        assert (before, after) == (text[:cut], text[cut:])
    # What was cut through is on the first side, so that nobody learns to write half a secret or its mark.
    through = any(secret.start < cut < secret.end for secret in find_secrets(text))
    assert before.endswith(">") or not through


@pytest.mark.parametrize(("kind", "start", "rest"), SECRETS, ids=IDS)
def test_a_secret_is_found_wherever_the_cut_goes_through_it(kind: str, start: str, rest: str) -> None:
    text = f"x = '{start}{rest}'\ny = 2\n"
    for cut in range(len(text) + 1):
        before, after, found = redact_pair(text[:cut], text[cut:])
        assert before + after == f"x = '<REDACTED:{kind}>'\ny = 2\n"
        assert found == {kind: 1}


def test_only_one_letter_changes_its_length_when_it_is_lowered() -> None:
    """What the search for telling names relies on: after that one, every position is the same."""
    longer = [chr(code) for code in range(sys.maxunicode + 1) if len(chr(code).lower()) != 1]
    assert longer == ["\u0130"]
    hidden = "password = '" + _HARD + "'"
    assert redact("\u0130" * 50 + hidden)[0] == "\u0130" * 50 + "password = '<REDACTED:password>'"


HOSTILE = {
    "at signs": "@",
    "addresses": "jane@corp.com ",
    "half addresses": "a@b.c-",
    "chained addresses": "a@bb.com" + "-" * 55,
    "schemes": "://",
    "credentials": "://u:p",
    "names": "password",
    "names with values": "password = '",
    "long values": "token='" + "x" * 500,
    "half web tokens": "eyJ" + "a" * 9 + ".",
    "web tokens without end": "eyJaaaaaaaa",
    "key beginnings": "-----BEGIN PRIVATE" + " KEY-----\n",
    "key ends": "-----END PRIVATE" + " KEY-----\n",
    "half keys": "-----BEGIN PRIVATE" + " KEY-----\n" + "A" * 39 + "\n",
    "token beginnings": "ghp_",
    "stripe beginnings": "sk_live_abcdefgh",
    "secrets": "ghp_" + "a" * 36 + " ",
    "letters": "a",
    "digits": "1",
    "dots": "a.",
}


def _seconds(text: str) -> float:
    best = math.inf
    for _ in range(3):
        started = time.thread_time()
        redact(text)
        best = min(best, time.thread_time() - started)
    return best


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_text_and_no_faster(name: str) -> None:
    unit = HOSTILE[name]
    small, large = (unit * (size // len(unit)) for size in (30_000, 240_000))
    # Eight times the text in eight times the time; a quadratic rule takes sixty-four.
    assert _seconds(large) < 28 * max(_seconds(small), 0.002)
