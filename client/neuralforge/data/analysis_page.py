"""An analysis as one HTML file that asks nobody for anything: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from neuralforge.data.analysis import Analysis, Judgement, Lengths
from neuralforge.data.source import printable

_STYLE = """
:root{color-scheme:light dark;--text:#1b1f24;--page:#fff;--soft:#57606a;--box:#f6f8fa;--line:#d0d7de;--bar:#3b6ea5;
--over:#c4741d;--good:#1a7f37;--fair:#9a6700;--bad:#cf222e}
@media (prefers-color-scheme:dark){:root{--text:#e6edf3;--page:#0d1117;--soft:#9aa4af;--box:#161b22;--line:#30363d;
--bar:#5b95d3;--over:#e0934a;--good:#3fb950;--fair:#d29922;--bad:#f85149}}
body{font:15px/1.5 system-ui,sans-serif;max-width:50rem;margin:1.5rem auto;padding:0 1rem;color:var(--text);
background:var(--page);overflow-wrap:anywhere}
h1{font-size:1.4rem} h2{font-size:1.1rem;margin:2rem 0 .5rem} p{margin:.5rem 0}
.verdict{padding:.7rem 1rem;border-left:.4rem solid var(--kind);background:var(--box)}
.verdict strong{font-size:1.1rem;color:var(--kind)} .verdict ul{padding-left:1.2rem}
.ready{--kind:var(--good)}.usable{--kind:var(--fair)}.do{--kind:var(--bad)} li.severe{font-weight:600}
li code{font-weight:normal}
code{font-size:.9em} pre{margin:.3rem 0;padding:.5rem .7rem;border:1px solid var(--line);border-radius:4px;
background:var(--page);white-space:pre-wrap}
table{border-collapse:collapse} th{font-weight:normal;color:var(--soft);font-size:.85rem}
td,th{padding:.15rem .9rem .15rem 0;vertical-align:top;text-align:left}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap} .soft{color:var(--soft)}
table.bars{width:100%;table-layout:fixed} .bars th:nth-child(1){width:30%} .bars th:nth-child(n+3){width:5rem}
.bars td:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap} .bars td{vertical-align:middle}
.bars i{display:block;height:.9rem;min-width:1px;background:var(--bar)}
@media (max-width:32rem){.bars tr{display:grid;grid-template-columns:1fr 4.4rem 3.2rem;align-items:center}
.bars td:first-child,.bars th:first-child{grid-column:1/-1;white-space:normal}
.bars td,.bars th:nth-child(n){width:auto;padding-right:.3rem}}
figure{margin:.8rem 0} figcaption,.axis{font-size:.8rem;color:var(--soft)}
figcaption{margin-bottom:.9rem}
.plot{display:grid;grid-template-columns:auto 1fr;column-gap:.4rem}
.y{display:flex;flex-direction:column;justify-content:space-between;height:11rem;margin:-.6rem 0;text-align:right}
.area{position:relative;height:9.8rem;border:solid var(--line);border-width:0 0 1px 1px}
.area svg{display:block;width:100%;height:100%} rect{fill:var(--bar)} rect.over{fill:var(--over)}
.limit{position:absolute;top:0;bottom:0;border-left:2px dashed var(--over);padding-left:.3rem}
.x{position:relative;height:1.4rem;grid-column:2} .x span{position:absolute;transform:translateX(-50%)}
.x span:first-child{transform:none} .name{grid-column:2;text-align:center}
.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em;background:var(--bar)}
.key.over{background:var(--over)}
"""

_MARKS = {"ready": "✓", "usable": "!", "do": "✗"}


def analysis_page(analysis: Analysis, judgement: Judgement, *, name: str, cost: str = "", base: str = "") -> str:
    """The page; `cost` is a line on steps and minutes, `base` is whose tokens were counted. What is told is escaped."""
    kind = judgement.verdict.split()[0].rstrip(",")
    parts = [
        f"<h1>{_text(name)}</h1>",
        f'<div class="verdict {kind}"><strong>{_MARKS[kind]} {_text(judgement.verdict)}</strong>{_findings(judgement)}',
        f"<p>Next:</p><pre><code>{_text(judgement.next)}</code></pre></div>" if judgement.next else "</div>",
        "<h2>What is in it</h2>",
        _facts(analysis),
        f"<h2>Time to train</h2><p>{_text(cost)}</p>" if cost else "",
    ]
    if analysis.lengths is not None:
        parts += [f"<h2>Length in tokens{_text(f' of {base}') if base else ''}</h2>", _lengths(analysis.lengths)]
    for title, counts in (
        ("Languages", analysis.languages),
        ("Repositories", analysis.repos),
        ("Licenses", analysis.licenses),
    ):
        parts += [f"<h2>{title}</h2>", _bars(counts, analysis.examples)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(name)}: {_text(judgement.verdict)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _findings(judgement: Judgement) -> str:
    rows = "".join(
        f'<li class="{"severe" if finding.severe else "mild"}">{_text(finding.text)}'
        + (f"<br><code>{_text(finding.way_out)}</code>" if finding.way_out not in ("", judgement.next) else "")
        + "</li>"
        for finding in judgement.findings
    )
    return f"<ul>{rows}</ul>" if rows else ""


def _facts(analysis: Analysis) -> str:
    rows = [
        ("examples", f"{analysis.examples:,}", ""),
        ("files", f"{analysis.files:,}", ""),
        ("say what stands behind them, too", f"{analysis.with_suffix:,}", "for fill-in-the-middle"),
        ("repeat another example", f"{analysis.duplicates.total():,}", _listed(analysis.duplicates)),
        ("hold a secret", f"{analysis.secrets.total():,}", _listed(analysis.secrets)),
    ]
    if leak := analysis.leakage:
        told = f"of {leak.examples:,}: {leak.exact:,} to the token, {leak.near:,} nearly"
        rows.append(("held-out examples in the training side", f"{leak.share:.1%}", told))
    cells = "".join(
        f'<tr><td>{_text(name)}</td><td class="n">{_text(value)}</td><td class="soft">{_text(more)}</td></tr>'
        for name, value, more in rows
    )
    return f"<table>{cells}</table>"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(6))


def _lengths(lengths: Lengths) -> str:
    shares = (f"{q} % have {value:,} or fewer" for q, value in sorted(lengths.quantiles.items()))
    return (
        f"<p>{'; '.join(shares)}. At {lengths.max_length:,} tokens {lengths.context_cut:.1%} of the contexts are cut "
        f"at their beginning and {lengths.completion_cut:.1%} of the completions at their end.</p>"
        + _histogram(lengths.histogram, lengths.max_length)
    )


def _bars(counts: Counter[str], total: int, *, most: int = 12) -> str:
    shown = counts.most_common(most)
    rest = counts.total() - sum(count for _, count in shown)
    rows = "".join(
        f'<tr><td title="{_text(name)}">{_text(name)}</td>'
        f'<td><i style="width:{100 * count / max(1, total):.2f}%"></i></td>'
        f'<td class="n">{count:,}</td><td class="n">{_text(_share(count, total))}</td></tr>'
        for name, count in (*shown, *([(f"others ({len(counts) - most:,})", rest)] if rest else []))
    )
    head = '<tr><th></th><th></th><th class="n">examples</th><th class="n">share</th></tr>'
    return f'<table class="bars">{head}{rows}</table>'


def _share(count: int, total: int) -> str:
    share = count / max(1, total)
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"


def _histogram(bins: Sequence[tuple[int, int]], limit: int) -> str:
    """Bars as a picture that takes any shape; what is written around it keeps its size on a small screen."""
    top = max(count for _, count in bins) or 1
    wide = bins[1][0] - bins[0][0] if len(bins) > 1 else 1
    end = wide * len(bins)
    bars = "".join(
        f'<rect class="{"over" if start >= limit else "under"}" x="{number + 0.05:.2f}" width="0.9" '
        f'y="{100 - 100 * count / top:.2f}" height="{100 * count / top:.2f}">'
        f"<title>{_range(start, wide, end)}: {count:,}</title></rect>"
        for number, (start, count) in enumerate(bins)
    )
    every = max(1, len(bins) // 4)
    ticks = "".join(
        f'<span style="left:{100 * number / len(bins):.2f}%">{start:,}</span>'
        for number, (start, _) in enumerate(bins)
        if number % every == 0
    )
    line = (
        f'<div class="limit axis" style="left:{100 * limit / end:.2f}%">cut at {limit:,}</div>' if limit < end else ""
    )
    return (
        '<figure><figcaption>examples <span class="key"></span>fit whole <span class="key over"></span>'
        'are longer than <code>--max-length</code></figcaption><div class="plot">'
        f'<div class="y axis"><span>{top:,}</span><span>{top // 2:,}</span><span>0</span></div>'
        f'<div class="area"><svg viewBox="0 0 {len(bins)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="How many examples have how many tokens">{bars}</svg>{line}</div>'
        f'<div class="x axis">{ticks}</div>'
        f'<div class="name axis">tokens of context and completion, {wide:,} to a bar; '
        "the last holds all longer ones</div>"
        "</div></figure>"
    )


def _range(start: int, wide: int, end: int) -> str:
    return f"{start:,} and more" if start + wide >= end else f"{start:,} to {start + wide - 1:,}"


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
