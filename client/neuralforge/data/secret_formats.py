"""The formats of well-known keys and tokens: what each starts with, and what follows.

Sources:
- AWS: docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-prefixes
- GitHub: github.blog/2021-04-05-behind-githubs-new-authentication-token-formats; "About authentication to GitHub"
- GitLab: docs.gitlab.com/security/tokens/#token-prefixes
- Slack: api.slack.com/authentication/token-types, api.slack.com/messaging/webhooks; Stripe: docs.stripe.com/keys
- Hugging Face: huggingface.co/docs/hub/security-tokens; OpenAI, Anthropic, OpenRouter: the keys that they hand out
- Google: cloud.google.com/docs/authentication/api-keys
- npm: github.blog/2021-09-23-announcing-npms-new-access-token-format
- PyPI: pypi.org/help/#apitoken (macaroons, in base64, of the site "pypi.org")
- the others: the rules of gitleaks (github.com/gitleaks/gitleaks, config/gitleaks.toml)
- JSON web tokens: RFC 7519; two parts of base64url that start with `{"`
"""

import re
from collections.abc import Iterator

SHORTEST = 16
"""No format is shorter, and none holds a character outside A-Z a-z 0-9 _ - . + / =; `redact` builds on both."""

# Kind, the texts that it starts with, what follows. A pattern may not look at what stands around it (that changes when
# a neighbour is replaced), and must give up within a bounded length (else the time is not linear). Where it cannot, as
# with jwt, a first group tells a find from what was only looked over.
_FORMATS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("aws-key", ("AKIA", "ASIA", "ABIA", "ACCA"), r"(?=[ACGNTU]{0,15}[^ACGNTU])[A-Z0-9]{16}"),  # (no piece of DNA)
    ("github-token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"[A-Za-z0-9]{36,}+"),
    ("github-token", ("github_pat_",), r"[A-Za-z0-9_]{22,}+"),
    (
        "gitlab-token",
        ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glimt-", "glagent-", "glsoat-", "gloas-", "glft-"),
        r"[A-Za-z0-9_\-.]{20,}+",
    ),
    (
        "slack-token",
        ("xoxa-", "xoxb-", "xoxe-", "xoxe.", "xoxo-", "xoxp-", "xoxr-", "xoxs-"),
        r"[A-Za-z0-9.\-]{12,}+",
    ),
    ("slack-token", ("xapp-",), r"[0-9]-[A-Za-z0-9\-]{12,}+"),  # (no "linuxapp-settings-window")
    ("slack-webhook", ("hooks.slack.com/services/", "hooks.slack.com/workflows/"), r"[A-Za-z0-9/_\-]{20,}+"),
    # No "benchmark_test_environment": a key has more than small letters.
    ("stripe-key", ("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"(?=[a-z]{0,99}+[A-Z0-9])[A-Za-z0-9]{10,}+"),
    ("stripe-key", ("whsec_",), r"[A-Za-z0-9+/=]{24,}+"),
    ("hf-token", ("hf_", "api_org_"), r"[A-Za-z0-9]{30,}+"),
    ("openai-key", ("sk-proj-", "sk-svcacct-", "sk-admin-", "sk-or-v1-"), r"[A-Za-z0-9_\-]{20,}+"),
    ("openai-key", ("sk-",), r"[A-Za-z0-9]{40,}+"),
    ("anthropic-key", ("sk-ant-",), r"[A-Za-z0-9_\-]{20,}+"),
    ("google-key", ("AIza",), r"[A-Za-z0-9_\-]{35}"),
    ("google-key", ("GOCSPX-",), r"[A-Za-z0-9_\-]{28}"),
    ("google-key", ("ya29.",), r"[A-Za-z0-9_\-]{20,}+"),
    ("npm-token", ("npm_",), r"[A-Za-z0-9]{36}"),
    ("pypi-token", ("pypi-AgE",), r"[A-Za-z0-9_\-]{50,}+"),
    ("sendgrid-key", ("SG.",), r"[A-Za-z0-9_\-]{22}\.[A-Za-z0-9_\-]{43}"),
    ("digitalocean-token", ("dop_v1_", "doo_v1_", "dor_v1_"), r"[a-f0-9]{64}"),
    ("databricks-token", ("dapi",), r"[a-f0-9]{32}"),
    ("shopify-token", ("shpat_", "shpca_", "shppa_", "shpss_"), r"[a-fA-F0-9]{32}"),
    ("vault-token", ("hvs.", "hvb."), r"[A-Za-z0-9_\-]{24,}+"),
    ("azure-key", ("AccountKey=", "SharedAccessKey="), r"[A-Za-z0-9+/=]{40,}+"),
    ("linear-key", ("lin_api_",), r"[A-Za-z0-9]{40}"),
    ("neuralforge-invitation", ("nfj_",), r"[A-Za-z0-9_\-]{43}"),
    ("age-key", ("AGE-SECRET-KEY-1",), r"[A-Z0-9]{58}"),
    ("jwt", ("eyJ",), r"[A-Za-z0-9_\-]{8,}+(\.eyJ[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]*+)?)?"),
)


_BY_START = {start: (kind, re.compile(rest)) for kind, starts, rest in _FORMATS for start in starts}


def _any_of(starts: list[str]) -> re.Pattern[str]:
    """One pattern for all starts, longest first, branching on the first character: twice the speed of a plain list."""
    branches = []
    for first in sorted({start[0] for start in starts}):
        rests = sorted((re.escape(start[1:]) for start in starts if start[0] == first), key=len, reverse=True)
        branches.append(f"{re.escape(first)}(?:{'|'.join(rests)})")
    return re.compile("|".join(branches))


_STARTS = _any_of(list(_BY_START))


def secrets_of_known_format(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of each key or token, in order, without overlaps."""
    at = 0
    looked_over: dict[str, int] = {}
    while start := _STARTS.search(text, at):
        # Not finditer: what begins inside a text that only looked like a start (`dapi_org_…`) must be seen as well.
        at = start.start() + 1
        kind, pattern = _BY_START[start[0]]
        if start.start() < looked_over.get(kind, 0):
            continue
        match = pattern.match(text, start.end())
        if match and (not pattern.groups or match[1]):
            at = match.end()
            yield start.start(), at, kind
        elif match:
            looked_over[kind] = match.end()
