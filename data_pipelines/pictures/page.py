"""One self-contained HTML page from sections of text, tables and pictures: no script, nothing to fetch.

The report of a log (data_pipelines/report.py) and that of a run (experiments/reports/run_page.py) are such pages. The
template escapes every string. Pages follow the reader's light or dark theme, and tables and pictures that are wider
than the screen scroll in a box of their own.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from data_pipelines.pictures.plots import png

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Table:
    """Rows under headers; without headers, pairs of a name and a value.

    Attributes: caption: a heading above. marked: numbers of rows that stand out. folded: whether it opens on a click.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    marked: Sequence[int] = ()
    folded: bool = False

    @property
    def named(self) -> bool:
        """Whether the first column holds names, which may wrap: on a narrow screen the numbers beside them show."""
        return any(len(str(row[0])) > 10 for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A figure, and what it shows in words for those who do not see it. caption: a heading above."""

    figure: Figure
    description: str
    caption: str = ""

    @property
    def data(self) -> str:
        """The PNG in base64, without a background: the page's shows through."""
        return base64.b64encode(png(self.figure, transparent=True)).decode("ascii")


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is, which opens on a click."""

    caption: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading, a note below it, and blocks: a `Table`, a `Picture`, a `Code`, or a str, which is a further note."""

    heading: str
    note: str = ""
    blocks: Sequence[Table | Picture | Code | str] = field(default_factory=tuple)


def render(title: str, sections: Sequence[Section], note: str = "", tiles: Sequence[tuple[str, str]] = (),
           terms: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML.

    Args:
      note: below the title. tiles: (figure, what it is) of what a reader should see first.
      terms: (term, meaning) for a glossary at the end.
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template(TEMPLATE).render(title=title, sections=sections, note=note, tiles=tiles,
                                                     terms=terms)
