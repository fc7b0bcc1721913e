"""The files of an evaluation: report.json, one self-contained HTML page, a Markdown summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.report_markdown import markdown
from clients.report_text import TEXT
from clients.statistics import Comparison
from clients.verdicts import conclusion, p_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent


def write_report(page: dict[str, Any], folder: Path) -> Path:
    """report.json, report.html and report.md; returns the page."""
    (folder / "report.json").write_text(json.dumps(page, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    html = folder / "report.html"
    html.write_text(render(page), encoding="utf-8")
    return html


def render(page: dict[str, Any]) -> str:
    """The page as one text. `page` may hold `bench`, `human` and `judge` beside what an evaluation writes."""
    from clients.report_plots import load_curves, training_curve

    curve = page["run"]["curve"] if page["run"] else []
    bench = page.get("bench")
    plots = {
        "training": training_curve(curve) if len(curve) > 1 else "",
        "load": load_curves(bench["rows"]) if bench else [],
    }
    template = environment().get_template("report.html.j2")
    return template.render(page=page, plots=plots, bench=bench, human=page.get("human"), judge=page.get("judge"))


def environment() -> Environment:
    """Templates with the filters of both pages; everything that models or users wrote is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"percent": _percent, "number": _number, "signed": _signed, "segments": segments, "p": p_text}
    made.globals |= {"t": text, "words": TEXT, "called": called}
    return made


def text(key: str) -> Markup:
    """A text in both languages; the page shows one of them."""
    from markupsafe import Markup

    english, chinese = TEXT[key]
    return Markup('<span class="en">{}</span><span class="zh">{}</span>').format(english, chinese)


def called(found: dict[str, Any], p_name: str) -> str:
    """better, worse or unclear."""
    fields = {name: found[name] for name in Comparison.__dataclass_fields__}
    return conclusion(Comparison(**fields), found[p_name])


def segments(side: dict[str, Any]) -> list[tuple[str, str]]:
    """An answer in pieces: (text, "" or "said" or "wrong")."""
    pieces, place = [], 0
    for start, end, kind in side["marks"]:
        pieces += [(side["text"][place:start], ""), (side["text"][start:end], kind)]
        place = end
    return [piece for piece in [*pieces, (side["text"][place:], "")] if piece[0]]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
