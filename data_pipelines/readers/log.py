"""Reader of anybody's log: a .csv, .tsv or .parquet file (also .gz, .zip), or a folder of them, a row a view or event.

Columns are found by their usual names (`FIELDS`) or as `columns` says. Needed are a person, a streamer and a moment; a
view's length is its end, its length of watching, the row of the same person leaving the room, or `default_watch_s`. A
room without an id is cut out of its streamer's views at gaps. A room's life is only a lower bound, from the first to
the last moment in which a row shows it, unless the log says when it began and ended.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from data_pipelines.readers import cells, dates, forms, room_logs, rows, text_files
from data_pipelines.readers.forms import Form
from data_pipelines.readers.log_columns import EVENT_AFFIXES, EVENT_COUNTS, FIELDS, WORDS
from data_pipelines.readers.rows import DEFAULTS, Counts, Options
from data_pipelines.readers.text_files import LINE
from data_pipelines.tables import ROOMS, Tables, moment, validate

DAY_MS = 86_400_000
EARLIEST_MS, LATEST_MS = 788_918_400_000, 4_102_444_800_000  # 1995 and 2100: no log of live streams is older or younger


def parse_columns(said: str) -> dict[str, str]:
    """`user=uid,start=joined_at:s` as a mapping. Raises: ValueError: for an unknown field."""
    result = {}
    for part in filter(None, said.split(",")):
        name, _, column = part.partition("=")
        if not column or name.strip() not in {c.name for c in FIELDS}:
            raise ValueError(f"--columns={said}: {part!r} is not FIELD=COLUMN; fields are "
                             f"{', '.join(c.name for c in FIELDS)}")
        result[name.strip()] = column.strip()
    return result


def read_log(path: str | Path, options: Options = DEFAULTS) -> Tables:
    """Canonical tables of a log. `limit_users` keeps the first so many people, in the order of their ids.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with file, line, column and what to do, where the log cannot be understood.
    """
    files = files_in(Path(path))
    tables = tables_of(forms_of(files, options), Counts(options.stop), options, str(path))
    tables.report.about.extend(not_read(Path(path).iterdir() if Path(path).is_dir() else (), files))
    check_lengths(str(path), long_views(tables.interactions), tables.report.views)
    return tables


def forms_of(files: Sequence[Path], options: Options) -> list[Form]:
    """The forms of the files of one log. Raises: ValueError: where they cannot be understood, or not together."""
    found = [_understood(form_of(file, options), options) for file in files]
    dated = {form.middle_ms is not None for form in found}
    if len(dated) > 1:
        small = next(form for form in found if form.middle_ms is None)
        raise ValueError(f"{small.path}: its times are small numbers, those of the other files are dates")
    return found


def long_views(log: pl.DataFrame, least_ms: int = DAY_MS) -> int:
    """Views of so long or longer."""
    return int(log.select((pl.col("click") & (pl.col("watch_ms") >= least_ms)).sum()).item())


def check_lengths(source: str, long: int, views: int) -> None:
    """Raises ValueError where most of the views last a day or longer."""
    if 2 * long > views:
        raise ValueError(f"{source}: half of the views last a day or longer ({long:,} of {views:,}): a length or an "
                         "end is in another unit (--columns=watch=COLUMN:s says which)")


def not_read(there: Iterable[Path], files: Sequence[Path]) -> list[str]:
    """A sentence on the files of a folder that are no log."""
    rest = sorted({path.name for path in there} - {file.name for file in files})
    more = f" and {len(rest) - 3:,} more" if len(rest) > 3 else ""
    return [f"not read, as they are no .csv, .tsv or .parquet: {', '.join(rest[:3])}{more}"] if rest else []


def files_in(path: Path) -> list[Path]:
    """The file, or the files of a folder. Raises: FileNotFoundError, ValueError: if there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a log, or of a folder of files of a log")
    files = sorted(p for p in path.iterdir() if p.is_file() and p.name.lower().endswith((
        *text_files.ENDINGS, *text_files.PARQUET)) and not p.name.startswith((".", "_")))
    if not files:
        raise ValueError(f"{path} holds no .csv, .tsv or .parquet file: give the log, or the folder that holds it")
    return files


def form_of(path: Path, options: Options) -> Form:
    """The form of a file: its columns by `Options.columns`, or by their usual names."""
    given, units = {}, {}
    for name, column in options.columns.items():
        given[name], _, units[name] = column.partition(":")
        known = (*(unit for unit in cells.UNIT_MS if unit != cells.DIGITS), *dates.ORDERS)
        if units[name] and units[name] not in known:
            raise ValueError(f"--columns: {name}={column}: {units[name]!r} is not one of {', '.join(known)}")
    columns = [replace(c, order=units[c.name]) if units.get(c.name) in dates.ORDERS else
               replace(c, unit=units.get(c.name) or None) for c in FIELDS]
    try:
        form = forms.form_of(path, columns, offset_ms=options.offset_ms, given=given)
    except ValueError as error:
        if "lacks the column" not in str(error):
            raise
        raise ValueError(f"{error}. Say which column it is: --columns=user=…,author=…,start=…; in a file without a "
                         "header, columns are #1, #2, …") from error
    return replace(form, whole_ids=False)


def _understood(form: Form, options: Options) -> Form:
    """The form, with the unit of its lengths. Raises: ValueError: where a time or a length can be anything."""
    names = {c.name: c for c in form.columns}
    if form.middle_ms is None and form.medians["start"] is not None and not names["start"].unit:
        spot = form.name("start")
        raise ValueError(f"{form.path}, column {spot}: numbers like {form.medians['start']:.0f} are no date. Say their "
                         f"unit: --columns=start={spot}:ms (or :s, :min, or :rounds of ten minutes)")
    clocked = form.medians["start"] is None and form.head_ms is not None
    if (form.middle_ms or clocked) and not EARLIEST_MS < (form.middle_ms or 0) < LATEST_MS:
        raise ValueError(f"{form.path}, column {form.name('start')}: most of its dates are about "
                         f"{moment(form.head_ms)}, which no log is from. Is it the right column?")
    if not {"stop", "watch", "event"} & names.keys() and not options.default_watch_s:
        found = ", ".join((*form.names, *form.unused))
        raise ValueError(f"{form.path}: no column says how long a view is (found {found}). Say which: "
                         "--columns=watch=… or stop=…; or give every view a length: --default_watch_s=60")
    if "watch" in names and not names["watch"].unit and not forms.unit_in(form.name("watch")):
        middle, unit = form.medians["watch"] or 0.0, form.units["start"]
        unit = "s" if unit == "s" or form.medians["start"] is None else "ms"
        if unit == "ms" and middle < 1000 or unit == "s" and middle > 43_200:  # of two readings, the likelier
            unit = "s" if unit == "ms" else "ms"
        form = replace(form, units=form.units | {"watch": unit})
    return form


def about(files: Sequence[Form]) -> list[str]:
    """How the columns were understood, as sentences; once where all files are alike."""
    result = []
    for form in files:
        said = []
        for column in form.columns:
            unit = ""
            if column.name in form.units:
                clock = form.medians[column.name] is None
                unit = "clock" if clock else cells.UNIT_NAMES[form.units[column.name]]
                if clock and column.name in form.orders:
                    unit += f", {dates.ORDERS[form.orders[column.name]]}"
                unit = f" ({unit})"
            said.append(f"{column.name} ← {form.name(column.name)}{unit}")
        lines = [f"columns: {', '.join(said)}"]
        if form.unused:
            lines.append(f"columns not used: {', '.join(form.unused)}")
        if lines != result[-len(lines):]:
            result += lines if len(files) == 1 or not result else [f"from {form.path.name} on:", *lines]
    return result


def tables_of(files: Sequence[Form], counts: Counts, options: Options, source: str, drop_empty: bool = False) -> Tables:
    """Canonical tables of files whose forms are understood. `drop_empty`: leave out views of no length."""
    with_events = has_events(files)
    found = []
    for i, form in enumerate(files):
        keep = functools.partial(with_kind, form, i, counts=counts) if with_events else functools.partial(
            with_length, form, counts=counts, options=options, drop_empty=drop_empty)
        found.append(rows.read(form, counts, keep))
    frame = pl.concat(found, how="diagonal")
    del found
    events = None
    if with_events:
        frame, events = views_of_events(files, frame, counts, options, drop_empty)
    everybody, frame = numbered(frame, "user")
    if not len(frame):
        rows.require_most(counts.report(source, (0, 0), about(files)))
    authors, frame = numbered(frame, "author")
    frame, rooms = with_rooms(frame, authors, counts, options)
    table = table_of(frame, events, everybody, authors, counts, options)
    report = counts.report(source, room_logs.sizes(table), about(files))
    return validate(Tables(
        table, room_table(rooms), room_logs.id_table("author_id", authors),
        room_logs.id_table("user_id", everybody[:options.limit_users]), report,
        rooms_are_true_lifetimes=has_lifetimes(files)))


def has_events(files: Sequence[Form]) -> bool:
    """Whether rows of the log enter and leave, rather than view."""
    return any(c.name == "event" for form in files for c in form.columns)


def has_lifetimes(files: Sequence[Form]) -> bool:
    """Whether the log says when rooms begin and end."""
    return {"room_start", "room_end"} <= {c.name for form in files for c in form.columns}


def table_of(frame: pl.DataFrame, events: pl.DataFrame | None, everybody: pl.Series, authors: pl.Series, counts: Counts,
             options: Options) -> pl.DataFrame:
    """The canonical interactions of some people, from all of their rows with room_id, and their other events."""
    if events is not None:
        frame = reactions(frame, events, everybody, authors, counts)
    if options.limit_users is not None and options.limit_users < len(everybody):
        kept = frame.filter(pl.col("user_id") < options.limit_users)
        counts.add("dropped", room_logs.beyond(options.limit_users), len(frame) - len(kept))
        frame = kept
    table = room_logs.once(room_logs.interactions(frame.drop("category", strict=False)), counts)
    if "outside" in frame.columns:
        outside = room_logs.interactions(frame.filter("outside").drop("category", strict=False))
        counts.add("notes", rows.OUTSIDE, len(room_logs.once(outside, Counts())))
    counts.add("notes", "session overlaps an earlier one of the same user", overlapping(table))
    return table


def views_of_events(files: Sequence[Form], frame: pl.DataFrame, counts: Counts, options: Options, drop_empty: bool
                    ) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All rows of some people, with kind and file → (their views, with their lengths; their other events)."""
    frame, events = paired(frame, counts)
    return pl.concat([with_length(form, frame.filter(pl.col("file") == i), counts, options, drop_empty)
                      for i, form in enumerate(files)]), events


def with_length(form: Form, frame: pl.DataFrame, counts: Counts, options: Options, drop_empty: bool) -> pl.DataFrame:
    """Rows of a block with watch and click; rooms that were shown and not clicked are not watched."""
    clicked = pl.col("click") > 0 if "click" in frame.columns else pl.lit(True)
    frame = frame.with_columns(clicked.fill_null(True).alias("click"))
    told = pl.col("watch") if "watch" in frame.columns else pl.lit(None, pl.Int64)
    if "stop" in frame.columns:
        length = pl.col("stop") - pl.col("start")
        gone = pl.col("click") & (length <= 0 if drop_empty else length < 0)
        if "watch" in frame.columns:
            off = frame.select(((length - told).abs() > 1000).sum()).item()
            counts.add("notes", "length of watching is more than a second off start and stop, and believed", off)
            gone &= told.is_null()
        frame = counts.keep_good(form, frame, gone, "stop", "<= start" if drop_empty else "is before start", dirt=True)
        told = pl.coalesce(told, length)
    if options.default_watch_s:
        told = told.fill_null(round(options.default_watch_s * 1000))
    frame = frame.with_columns(pl.when("click").then(told).otherwise(0).alias("watch_ms"))
    frame = counts.keep_good(form, frame, pl.col("watch_ms").is_null(), "start", "begins a view of unknown length "
                             "(--default_watch_s gives it one)", dirt=True)
    return frame.drop("watch", "stop", "file", LINE, strict=False)


def with_kind(form: Form, file: int, frame: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Rows of a block of the `file`-th file, with `file` and the kind of their event, a key of WORDS."""
    kinds = {word: kind for kind, words in WORDS.items() for word in words}
    frame = frame.with_columns(pl.lit(file, pl.Int32).alias("file"))
    if "event" not in frame.columns:  # another file of the log has events
        return frame.with_columns(kind=pl.lit("view"))
    word = pl.col("event").str.to_lowercase().str.replace_all(r"[\s_.:-]+", "_")
    kind = pl.coalesce(name.replace_strict(kinds, default=None, return_dtype=pl.String)
                       for name in (word, word.str.replace_all(EVENT_AFFIXES, "")))
    frame = frame.with_columns(kind.alias("kind"))
    return counts.keep_good(form, frame, pl.col("kind").is_null(), "event", f"is none of {', '.join(WORDS)}", dirt=True)


def paired(frame: pl.DataFrame, counts: Counts) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of events and their kind as (views with stop and click, other events with their kind).

    A person's row that leaves a room ends the same person's last row that entered it, if nothing came between.
    """
    frame = frame.drop("event")
    of = ["user", "author", *[name for name in ("room",) if name in frame.columns]]
    moves = frame.filter(pl.col("kind").is_in(["enter", "leave"])).sort(*of, "start", "file", LINE)
    after = pl.struct(of).eq_missing(pl.struct(of).shift(-1)) & (pl.col("kind").shift(-1) == "leave")
    moves = moves.with_columns(pl.when(after).then(pl.col("start").shift(-1)).alias("left"))
    entered = moves.filter(pl.col("kind") == "enter")
    ended = len(entered) - entered["left"].null_count()
    counts.add("merged", "row of a person leaving a room, which ends a view", ended)
    counts.add("dropped", "leaves a room that the person had not entered", len(moves) - len(entered) - ended)
    stop = [pl.col("left") if "stop" not in frame.columns else pl.coalesce("left", "stop")]
    views = pl.concat([entered.with_columns(stop[0].alias("stop")).drop("left"),
                       frame.filter(pl.col("kind").is_in(["view", "show"]))], how="diagonal")
    views = views.with_columns(click=(pl.col("kind") != "show").cast(pl.Int64))
    return views.drop("kind"), frame.filter(pl.col("kind").is_in([*EVENT_COUNTS, "gift"]))


def reactions(views: pl.DataFrame, events: pl.DataFrame, users: pl.Series, authors: pl.Series, counts: Counts
              ) -> pl.DataFrame:
    """The views with the likes, gifts, … that have rows of their own: those of the person's last view by then."""
    for column, ids in (("user", users), ("author", authors)):
        events = room_logs.number(events, column, ids, f"{column}_id")
    events = events.rename({"start": "start_ms"})
    views = views.sort(views.columns)  # of two views at one moment it must not depend on the rows' order which is last
    views = views.with_columns(view=pl.int_range(pl.len()))
    for kind in (*EVENT_COUNTS, "gift"):
        rows_of = events.filter(pl.col("kind") == kind)
        if len(rows_of):
            column = "gift_value" if kind == "gift" else kind
            value = pl.col("gift").fill_null(1.0) if kind == "gift" and "gift" in events.columns else pl.lit(1.0)
            total = room_logs.total_of_last_view(rows_of.with_columns(value=value), views, kind, counts,
                                                 by=("user_id", "author_id"))
            before = pl.col(column).fill_null(0) if column in views.columns else pl.lit(0)
            views = views.with_columns((before + total).alias(column))
    return views.drop("view")


def numbered(frame: pl.DataFrame, column: str, whole: bool | None = None) -> tuple[pl.Series, pl.DataFrame]:
    """The different ids of a column as text, in order, and the frame with their places as COLUMN_id.

    `whole`: they are numbered as whole numbers; None: if they all are.
    """
    found = room_logs.compact(frame[column]) if whole is None else frame[column].cast(pl.Int64) if whole else (
        frame[column])
    ids = found.unique().drop_nulls().sort()
    if found.dtype == pl.String:
        return ids, room_logs.number(frame, column, ids, f"{column}_id")
    places = (found.rank("dense").cast(pl.Int32) - 1).alias(f"{column}_id")
    return ids.cast(pl.String), frame.drop(column).with_columns(places)


def with_rooms(frame: pl.DataFrame, authors: pl.Series, counts: Counts, options: Options, whole: bool | None = None
               ) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(all rows of some rooms, or of the streamers of rooms without an id, with room_id; the rooms, for `room_table`).

    Rooms are numbered from 0 in the order of their ids and streamers; those without an id come last. Where the log says
    when rooms begin and end, rows have `outside`: whether they are views outside of their room's life.
    """
    frame = frame.rename({"start": "start_ms", "gift": "gift_value"}, strict=False)
    stop = pl.col("start_ms") + pl.col("watch_ms")
    if "room" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.String).alias("room"))
    ids, frame = numbered(frame, "room", whole)
    frame = frame.rename({"room_id": "place"})
    if unnamed := frame["place"].null_count():
        counts.add("notes", f"row without a room: cut where its streamer pauses for {options.room_gap_min:g} minutes "
                            "(--room_gap_min)", unnamed)
        part = frame.filter(pl.col("place").is_null()).sort("author_id", "start_ms")
        latest = stop.cum_max().shift().over("author_id")
        begins = (pl.col("start_ms") > latest + round(options.room_gap_min * 60_000)).fill_null(True)
        part = part.with_columns(place=len(ids) - 1 + begins.cast(pl.Int32).cum_sum())
        frame = pl.concat([frame.drop_nulls("place"), part])
    # A room of several streamers is a room of each of them: its number and theirs are one key.
    key = pl.col("place").cast(pl.Int64) * len(authors) + pl.col("author_id")
    frame = frame.with_columns(room_id=key.rank("dense").cast(pl.Int32) - 1)
    true_lives = {"room_start", "room_end"} <= set(frame.columns)
    start, end = pl.col("start_ms").min(), stop.max()
    if true_lives:
        start, end = pl.coalesce(pl.col("room_start").min(), start), pl.col("room_end").max()
    aggregates = [start.alias("start_ms"), end.alias("end_ms"), pl.col("place", "author_id").first()]
    rooms = frame.lazy().group_by("room_id").agg(aggregates).sort("room_id").collect(engine="streaming")
    rooms = rooms.with_columns(
        source_id=pl.concat([ids, pl.Series([None], dtype=pl.String)]).gather(rooms["place"].clip(0, len(ids))),
        end_ms=pl.when(pl.col("end_ms") <= pl.col("start_ms")).then(pl.col("start_ms") + 1).otherwise("end_ms"))
    if "category" in frame.columns:  # that of the room's earliest row that has one
        told = frame.lazy().filter(pl.col("category").is_not_null()).group_by("room_id").agg(
            pl.col("category").filter(pl.col("start_ms") == pl.col("start_ms").min()).min()).collect()
        rooms = rooms.join(told, on="room_id", how="left", maintain_order="left")
    if unnamed:
        nth = (pl.col("source_id").is_null()).cast(pl.Int32).cum_sum().over("author_id")
        made = pl.format("{}/{}", authors.gather(rooms["author_id"]), nth)
        rooms = rooms.with_columns(pl.coalesce("source_id", made))
    counts.add("notes", "room of several streamers (one room each)", rooms.filter(
        pl.col("place") == pl.col("place").shift())["place"].n_unique())
    if true_lives:
        life = [rooms[name].gather(frame["room_id"]) for name in ("start_ms", "end_ms")]
        outside = room_logs.is_outside(pl.col("start_ms"), *map(pl.lit, life))
        frame = frame.with_columns(outside=pl.col("click") & outside)
    return frame, rooms


def room_table(rooms: pl.DataFrame, texts: pl.Series | None = None) -> pl.DataFrame:
    """The canonical table of rooms that `with_rooms` found; `texts`: all categories, where `rooms` are a part."""
    kind = room_logs.categories(rooms["category"], texts) if "category" in rooms.columns else pl.lit(-1, pl.Int32)
    return rooms.with_columns(category=kind, title_embedding=pl.lit(-1, pl.Int32)).select(*ROOMS, "source_id")


def overlapping(log: pl.DataFrame) -> int:
    """Sessions that begin before an earlier session of the same user has ended (rows in canonical order)."""
    stop = pl.col("start_ms") + pl.col("watch_ms")
    earlier = stop.cum_max().shift().over("user_id")
    return int(log.select((pl.col("start_ms") < earlier).fill_null(False).sum()).item())
