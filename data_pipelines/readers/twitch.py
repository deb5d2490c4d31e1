"""Reader of Twitch viewing logs in rounds of ten minutes (Rappaz, McAuley and Aberer, RecSys 2021): a preset of `log`.

Two forms are read: the LiveRec form, five columns without a header (user, stream, streamer, start, stop), and the form
with a header, whatever the usual names of the five are. Times are whole rounds since the crawl's start and the stop is
exclusive. A room's life is only a lower bound: from the first to the last round in which a row shows it.
"""

from dataclasses import replace
from pathlib import Path

from data_pipelines.readers import forms, log, text_files
from data_pipelines.readers.forms import Form
from data_pipelines.readers.rows import DEFAULTS, Counts, Options
from data_pipelines.tables import Tables

ROUND_MS = 600_000
FIELDS = ("user", "room", "author", "start", "stop")  # in the order of the form without a header
LONG_ROUNDS = 10  # half of all views are of one or two rounds: a median from here on is in minutes or seconds


def read_twitch(path: str | Path, options: Options = DEFAULTS) -> Tables:
    """Canonical tables of a Twitch log; start_ms and watch_ms are rounds × 600,000.

    Rows that repeat another exactly and rows with stop <= start are dropped and counted in the report. Overlapping
    sessions of a person are kept (people do watch two rooms at once) and counted in the notes, as is a stream id that
    several streamers claim: each of them gets a room of their own.

    Raises: as `log.read_log`; and where the times are not in rounds.
    """
    form = form_of(log.files_in(Path(path))[0])
    tables = log.tables_of([form], Counts(options.stop), options, str(path), drop_empty=True)
    check_lengths(form, log.long_views(tables.interactions, LONG_ROUNDS * ROUND_MS), tables.report.views)
    return tables


def form_of(file: Path) -> Form:
    """The form of the file. Raises: ValueError: where it has neither the five columns nor a header with their names."""
    columns = [replace(c, needed=True, empty=False, kind="time", unit="rounds") if c.name in ("start", "stop") else
               replace(c, needed=True, empty=False) for c in log.FIELDS if c.name in FIELDS]
    layout, _ = text_files.layout_of(file)
    known = {forms.plain(name) for column in columns for name in (column.name, *column.also)}
    given = {}
    if not known & {forms.plain(name) for name in layout.header}:
        if len(layout.header) != len(FIELDS):
            raise ValueError(f"{file}, line 1: {len(layout.header)} columns, but a log without a header has exactly 5: "
                             "user, stream, streamer, start, stop. With other columns, add a header that names "
                             "user_id, stream_id, streamer_name, start_time, stop_time")
        given = {name: f"#{i + 1}" for i, name in enumerate(FIELDS)}
    return replace(forms.form_of(file, columns, given=given), whole_ids=False)


def check_lengths(form: Form, long: int, views: int) -> None:
    """Raises ValueError where half of the views or more last LONG_ROUNDS or longer."""
    if 2 * long >= views > 0:
        raise ValueError(f"{form.path}: half of the views last {LONG_ROUNDS} rounds ({LONG_ROUNDS * 10} minutes) or "
                         f"longer ({long:,} of {views:,}): the times are in minutes or seconds. "
                         "Read it with --source=log "
                         "--columns=start=COLUMN:min,stop=COLUMN:min (or :s)")
