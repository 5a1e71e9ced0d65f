"""Figures over the stages of training, base to rl, in characters and as pictures that stand inside a page."""

import html
from collections.abc import Iterator, Sequence

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.report.comparison import Line
from nanochat_pl.report.evaluated import stage_order
from nanochat_pl.report.overview import Overview, baseline_text, figure_name, format_value

__all__ = ["svg_charts", "text_chart"]

_BAR = 32


def _progress(overview: Overview) -> Iterator[tuple[Line, list[tuple[str, MetricRow]], float]]:
    """Give each figure over the stages of training: the line, labelled rows from the first stage on, and the scale."""
    order = stage_order(overview.entrants)
    if len({entrant.stage for entrant in overview.entrants}) > 1:
        for line in overview.lines:
            points = [
                (f"{overview.entrants[index].stage.split('_')[0].upper()} {overview.entrants[index].label}", row)
                for index in order
                if (row := line.rows[index]) is not None and row.value is not None
            ]
            highest = max((_high(row) for _, row in points), default=0.0)
            if len(points) > 1 and highest > 0 and min(row.value or 0.0 for _, row in points) >= 0:
                yield line, points, 1.0 if all(row.is_share for _, row in points) else highest


def _high(row: MetricRow) -> float:
    assert row.value is not None
    return row.interval.high if row.interval is not None else row.value


def text_chart(overview: Overview) -> str:
    """Draw each figure over the stages in characters: full up to the interval's low end, shaded up to its high end."""
    said = []
    for line, points, scale in _progress(overview):
        width = max(len(label) for label, _ in points)
        said.append("  ".join(filter(None, (f"{line.evaluation} {figure_name(line)}", baseline_text(line)))))
        for label, row in points:
            assert row.value is not None
            low, high = (row.interval.low, row.interval.high) if row.interval else (row.value, row.value)
            full, all_of_it = round(_BAR * max(low, 0.0) / scale), round(_BAR * high / scale)
            bar = "█" * full + "▒" * (all_of_it - full)
            said.append(f"  {label:{width}}  {bar:·<{_BAR}}  {format_value(row.value, row.is_share)}")
    return "\n".join(said)


def svg_charts(overview: Overview) -> list[str]:
    """Draw each figure over the stages, a picture each: point and interval, dashed what chance alone reaches."""
    return [_svg(line, points, scale) for line, points, scale in _progress(overview)]


def _svg(line: Line, points: Sequence[tuple[str, MetricRow]], scale: float) -> str:
    """Draw one figure over the stages: a row a checkpoint, so that long names and narrow screens do no harm."""
    left, width, step, top = 10, 340, 44, 34
    height = top + step * len(points) + 24
    share = all(row.is_share for _, row in points)

    def x(value: float) -> float:
        return round(left + width * min(max(value, 0.0) / scale, 1.0), 1)

    title = html.escape(_shortened(f"{line.evaluation} {figure_name(line)}"))
    parts = [
        f'<svg viewBox="0 0 360 {height}" width="560" role="img" aria-label="{title}" font-family="sans-serif" '
        f'font-size="12"><text x="{left}" y="16" font-weight="bold">{title}</text>'
    ]
    for part in range(5):
        value = scale * part / 4
        anchor = "start" if not part else "end" if part == 4 else "middle"
        parts.append(
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{top - 8}" y2="{height - 18}" stroke="#ddd"/>'
            f'<text x="{x(value)}" y="{height - 4}" text-anchor="{anchor}" fill="#555">'
            f"{f'{value:.0%}' if share else f'{value:.3g}'}</text>"
        )
    chance = next((row.baseline["chance"] for _, row in points if row.baseline and "chance" in row.baseline), None)
    if isinstance(chance, float):
        parts.append(
            f'<line x1="{x(chance)}" x2="{x(chance)}" y1="{top - 8}" y2="{height - 18}" stroke="#555" '
            'stroke-dasharray="4 3"/>'
        )
    for place, (label, row) in enumerate(points):
        assert row.value is not None
        y = top + step * place + 28
        parts.append(
            f'<text x="{left}" y="{y - 14}">{html.escape(_shortened(label))}: {format_value(row.value, share)}</text>'
        )
        if row.interval is not None:
            low, high = x(row.interval.low), x(row.interval.high)
            parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="#0072b2" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(row.value)}" cy="{y}" r="5" fill="#0072b2"/>')
    return "".join(parts) + "</svg>"


def _shortened(text: str, limit: int = 44) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"
