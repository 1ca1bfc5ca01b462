"""An analysis as one HTML file that asks nobody for anything: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from neuralforge.data.analysis import Analysis, Judgement
from neuralforge.data.source import printable

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.4rem} h2{font-size:1.05rem;margin:2rem 0 .4rem}
.verdict{padding:.7rem 1rem;border-left:.4rem solid;background:#f6f8fa}
.ready{border-color:#1a7f37}.usable{border-color:#bf8700}.do{border-color:#cf222e}
code{background:#eff1f3;padding:.1rem .3rem;border-radius:3px;overflow-wrap:anywhere}
table{border-collapse:collapse}
td{padding:.15rem 1.2rem .15rem 0}td.n{text-align:right;font-variant-numeric:tabular-nums}
svg{display:block;max-width:100%} svg text{font:12px system-ui,sans-serif;fill:#57606a}
rect.bar{fill:#3b6ea5} rect.over{fill:#c4741d}
@media (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.verdict,code{background:#161b22}
svg text{fill:#9aa4af}}
"""


def analysis_page(analysis: Analysis, judgement: Judgement, *, name: str, cost: str = "") -> str:
    """The page; `cost` is a line on steps and minutes. Whatever stood in the dataset is escaped."""
    kind = judgement.verdict.split()[0].rstrip(",")
    parts = [
        f"<h1>{_text(name)}</h1>",
        f'<div class="verdict {kind}"><strong>{_text(judgement.verdict)}</strong>{_findings(judgement)}',
        f"<p>next: <code>{_text(judgement.next)}</code></p></div>" if judgement.next else "</div>",
        "<h2>What is in it</h2>",
        _table(
            [
                ("examples", f"{analysis.examples:,}"),
                ("files", f"{analysis.files:,}"),
                ("with what stands behind", f"{analysis.with_suffix:,}"),
                ("repeat another example", f"{sum(analysis.duplicates.values()):,}"),
                ("hold a secret", f"{sum(analysis.secrets.values()):,}"),
                *(
                    [("of the held-out ones, in the training side", f"{analysis.leakage.share:.1%}")]
                    if analysis.leakage
                    else []
                ),
                *([("cost", cost)] if cost else []),
            ]
        ),
    ]
    if analysis.lengths is not None:
        lengths = analysis.lengths
        told = ", ".join(f"{q} % up to {value}" for q, value in lengths.quantiles.items())
        parts += [
            f"<h2>Length in tokens</h2><p>{told}. At {lengths.max_length} tokens "
            f"{lengths.context_cut:.1%} of the contexts and {lengths.completion_cut:.1%} of completions are cut.</p>",
            _histogram(lengths.histogram, lengths.max_length),
        ]
    for title, counts in (
        ("Languages", analysis.languages),
        ("Repositories", analysis.repos),
        ("Licenses", analysis.licenses),
    ):
        parts += [f"<h2>{title}</h2>", _bars(counts, analysis.examples)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(name)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _findings(judgement: Judgement) -> str:
    rows = "".join(
        f"<li>{_text(finding.text)}{' — <code>' + _text(finding.way_out) + '</code>' if finding.way_out else ''}</li>"
        for finding in judgement.findings
    )
    return f"<ul>{rows}</ul>" if rows else ""


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><td>{_text(name)}</td><td class="n">{_text(value)}</td></tr>' for name, value in rows)
    return f"<table>{cells}</table>"


def _bars(counts: Counter[str], total: int, *, most: int = 12) -> str:
    shown = counts.most_common(most)
    rest = sum(counts.values()) - sum(count for _, count in shown)
    rows = [*shown, *([("others", rest)] if rest else [])]
    height = 22 * len(rows)
    marks = []
    for number, (name, count) in enumerate(rows):
        y, width = 22 * number, max(1.0, 420 * count / max(1, total))
        marks.append(
            f'<text x="150" y="{y + 15}" text-anchor="end">{_text(name[:24])}</text>'
            f'<rect class="bar" x="160" y="{y + 4}" width="{width:.1f}" height="14"/>'
            f'<text x="{168 + width:.1f}" y="{y + 15}">{count:,} · {count / max(1, total):.0%}</text>'
        )
    return f'<svg viewBox="0 0 720 {height}" width="720" height="{height}" role="img">{"".join(marks)}</svg>'


def _histogram(bins: Sequence[tuple[int, int]], limit: int) -> str:
    top = max(count for _, count in bins) or 1
    width = 680 / len(bins)
    marks = []
    for number, (start, count) in enumerate(bins):
        height = 120 * count / top
        kind = "over" if start >= limit else "bar"
        marks.append(
            f'<rect class="{kind}" x="{number * width + 1:.1f}" y="{124 - height:.1f}" '
            f'width="{width - 2:.1f}" height="{height:.1f}"><title>from {start}: {count:,}</title></rect>'
        )
        if number % 6 == 0:
            marks.append(f'<text x="{number * width:.1f}" y="142">{start}</text>')
    return f'<svg viewBox="0 0 700 150" width="700" height="150" role="img">{"".join(marks)}</svg>'


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
