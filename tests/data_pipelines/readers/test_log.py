"""Anybody's log: one file or a folder, whatever its columns are called and its times written."""

import datetime

import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.prepare import options_of, read_source
from data_pipelines.readers.log import parse_columns, read_log
from data_pipelines.readers.rows import Options

T = 1_746_403_200_000  # Mon 5 May 2025 00:00 UTC
MIN = 60_000
WANTED = [("ann", "r1", "lee", T, 10 * MIN), ("ann", "r2", "kim", T + 120 * MIN, 20 * MIN),
          ("bob", "r1", "lee", T + 5 * MIN, 40 * MIN)]
HEADER = "user,room,streamer,start_ms,watch_ms"
ROWS = [f"{u},{r},{a},{s},{w}" for u, r, a, s, w in WANTED]


def write(folder, lines, name="views.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def views(tables):
    log = tables.interactions.filter("click")
    names = [table[column].gather(log[key]) for table, column, key in (
        (tables.users, "source_id", "user_id"), (tables.rooms, "source_id", "room_id"),
        (tables.authors, "source_id", "author_id"))]
    return sorted(zip(*names, log["start_ms"], log["watch_ms"], strict=True))


def clock(ms, form="%Y-%m-%d %H:%M:%S"):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime(form)


FORMS = {
    "ms": (HEADER, lambda u, r, a, s, w: f"{u},{r},{a},{s},{w}"),
    "seconds": ("UID,Live ID,Anchor,Timestamp,Duration", lambda u, r, a, s, w: f"{u},{r},{a},{s // 1000},{w // 1000}"),
    "microseconds": ("viewer_id,sessionId,channel,ts,watch_s",
                     lambda u, r, a, s, w: f"{u},{r},{a},{s}000,{w // 1000}.0"),
    "clocks": ("user_id;stream_id;streamer_name;joined_at;left_at",
               lambda u, r, a, s, w: f"{u};{r};{a};{clock(s)};{clock(s + w)}"),
    "zones": ("user\troom_id\tauthor_id\tstart\tend", lambda u, r, a, s, w: "\t".join((
        u, r, a, clock(s + 480 * MIN, "%Y-%m-%dT%H:%M:%S+08:00"), clock(s + w, "%Y-%m-%dT%H:%M:%SZ")))),
    "minutes": ("user,room,author,start,minutes", lambda u, r, a, s, w: f"{u},{r},{a},{s}.0,{w // MIN}"),
    "lengths as clocks": ("user,room,author,started_at,watch_time", lambda u, r, a, s, w:
                          f"{u},{r},{a},{clock(s, '%Y/%m/%d %H:%M:%S')},{clock(w, '%H:%M:%S')}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_and_units_are_recognised(tmp_path, form):
    header, row = FORMS[form]
    options = Options(columns={"watch": "minutes"} if form == "minutes" else {})
    tables = read_log(write(tmp_path, [header, *(row(*view) for view in WANTED)]), options)
    assert views(tables) == WANTED
    assert tables.rooms.select("source_id", "start_ms", "end_ms").rows() == [
        ("r1", T, T + 45 * MIN), ("r2", T + 120 * MIN, T + 140 * MIN)]
    assert tables.rooms_are_true_lifetimes is False
    assert tables.report.about[0].startswith("columns: user ← ")


def test_a_folder_parquet_and_packed_files_are_one_log(tmp_path):
    write(tmp_path, [HEADER, ROWS[0]], "a[1].csv")
    write(tmp_path, ["start_ms,watch_ms,streamer,room,user", f"{T + 120 * MIN},{20 * MIN},kim,r2,ann"], "b.csv")
    pl.DataFrame([WANTED[2]], schema=["user", "room", "streamer", "start_ms", "watch_ms"], orient="row"
                 ).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "notes.md").write_text("not a log")
    assert views(read_log(tmp_path)) == WANTED
    assert views(read_log(tmp_path / "a[1].csv")) == WANTED[:1]
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_log(tmp_path / "none.csv")


def test_columns_may_be_named_or_counted(tmp_path):
    rows = [f"{a},{s // 1000},{w / MIN},{u}" for u, _, a, s, w in WANTED]
    path = write(tmp_path, ["who,when,how_long,fan", *rows])
    tables = read_log(path, Options(parse_columns("user=fan,author=who,start=when:s,watch=how_long:min")))
    assert {(u, *view) for u, _, *view in views(tables)} == {(u, *view) for u, _, *view in WANTED}
    bare = write(tmp_path, rows, "bare.csv")
    counted = read_log(bare, Options(parse_columns("user=#4,author=#1,start=#2,watch=#3:min")))
    assert counted.interactions.equals(tables.interactions)
    with pytest.raises(ValueError, match=r"'viewer=x' is not FIELD=COLUMN; fields are user, author"):
        parse_columns("viewer=x")
    with pytest.raises(ValueError, match=r"watch=how_long:y: 'y' is not one of ms, s.*dmy"):
        read_log(path, Options({"watch": "how_long:y"}))
    with pytest.raises(ValueError, match=r"has no column 'fans'.*it has who, when"):
        read_log(path, Options({"user": "fans"}))


def test_rooms_without_an_id_are_cut_at_gaps(tmp_path):
    rows = [f"1,lee,{T},{10 * MIN}", f"2,lee,{T + 39 * MIN},{60 * MIN}", f"1,lee,{T + 41 * MIN},{MIN}",
            f"1,lee,{T + 130 * MIN},{MIN}", f"1,kim,{T},{MIN}"]
    tables = read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows]))
    assert tables.rooms.select("source_id", "start_ms", "end_ms").rows() == [
        ("kim/1", T, T + MIN), ("lee/1", T, T + 99 * MIN), ("lee/2", T + 130 * MIN, T + 131 * MIN)]
    reason = "row without a room: cut where its streamer pauses for 30 minutes (--room_gap_min)"
    assert tables.report.notes[reason] == 5
    shorter = read_log(tmp_path / "views.csv", Options(room_gap_min=28.9))
    assert shorter.rooms["source_id"].to_list() == ["kim/1", "lee/1", "lee/2", "lee/3"]


def test_some_rows_have_a_room_and_a_room_may_have_two_streamers(tmp_path):
    rows = [f"1,lee,r,{T},{MIN}", f"1,kim,r,{T},{MIN}", f"1,kim,,{T},{MIN}", f"2,lee,NULL,{T},{MIN}"]
    tables = read_log(write(tmp_path, ["user,author,room,start_ms,watch_ms", *rows]))
    assert tables.rooms["source_id"].to_list() == ["r", "r", "kim/1", "lee/1"]
    assert tables.rooms["author_id"].to_list() == [0, 1, 0, 1]
    assert tables.report.notes["room of several streamers (one room each)"] == 1


def test_rows_of_entering_and_leaving_are_paired_by_room(tmp_path):
    events = [("ann", "r1", T, "enter"), ("ann", "r2", T + MIN, "JOIN"), ("ann", "r1", T + 3 * MIN, "leave"),
              ("ann", "r2", T + 9 * MIN, "Exit"), ("ann", "r1", T + 9 * MIN, "enter"), ("bob", "r1", T, "leave"),
              ("bob", "r1", T + MIN, "enter"), ("bob", "r1", T + 2 * MIN, "like"), ("bob", "r1", T + 2 * MIN, "like"),
              ("bob", "r2", T + MIN, "dance"), ("bob", "r1", T + 4 * MIN, "leave"), ("bob", "r2", T, "impression")]
    lines = ["uid,room,channel,ts,event", *(f"{u},{r},{r}'s,{s},{e}" for u, r, s, e in events)]
    tables = read_log(write(tmp_path, lines))
    assert [(u, r, s - T, w) for u, r, _, s, w in views(tables)] == [
        ("ann", "r1", 0, 3 * MIN), ("ann", "r2", MIN, 8 * MIN), ("bob", "r1", MIN, 3 * MIN)]
    assert tables.interactions["like"].to_list() == [0, 0, 0, 2]
    assert tables.interactions.select("click", "watch_ms").rows()[2] == (False, 0)
    report = tables.report
    assert report.dropped == {"event is none of enter, leave, view, show, like, comment, follow, share, gift": 1,
                              "leaves a room that the person had not entered": 1,
                              "ts begins a view of unknown length (--default_watch_s gives it one)": 1}
    assert report.rows_read == 12 == report.rows_kept + sum(report.merged.values()) + sum(report.dropped.values())
    lengthy = read_log(tmp_path / "views.csv", Options(default_watch_s=30))
    assert ("ann", "r1", "r1's", T + 9 * MIN, 30_000) in views(lengthy)


def test_what_a_log_may_tell_more(tmp_path):
    lines = ["user,room,author,start_ms,watch_ms,likes,comment_cnt,followed,gift_value,rating,game,clicked,position,m",
             f"1,r,a,{T},5000,1,2.0,yes,3.5,4,chess,1,0,x", f"1,q,a,{T},,,,,,,go,0,1,x",
             f"1,q,b,{T + 1},7,0,0,no,0,,,1,,x"]
    tables = read_log(write(tmp_path, lines))
    assert tables.interactions.drop("user_id", "room_id", "author_id", "start_ms", "share", "negative").rows() == [
        (0, False, 0, 0, 0, 0.0, 1, None), (5000, True, 1, 2, 1, 3.5, 0, 4.0), (7, True, 0, 0, 0, 0.0, -1, None)]
    assert tables.rooms["category"].to_list() == [1, -1, 0]  # by the alphabet; the room q of b has none
    assert tables.report.about[1] == "columns not used: m"
    tables_lib.save(tables, tmp_path / "tables")
    assert tables_lib.load(tmp_path / "tables").interactions.equals(tables.interactions)


def test_true_lifetimes_and_views_that_lie_outside_of_them(tmp_path):
    header = "user,room,author,start_ms,watch_ms,room_start,room_end"
    lives = f"{T - 60 * MIN},{T + 60 * MIN}"
    tables = read_source("log", write(tmp_path, [header, *[f"{i},r,a,{T + i},{MIN},{lives}" for i in range(4)],
                                                 f"9,r,a,{T + 99 * MIN},{MIN},{lives}"]))
    assert tables.rooms.select("start_ms", "end_ms").rows() == [(T - 60 * MIN, T + 60 * MIN)]
    assert tables.rooms_are_true_lifetimes
    assert tables.report.notes["view that begins before its room does, or after its end"] == 1
    late = [f"{i},r,a,{T + 480 * MIN + i},{MIN},{lives}" for i in range(5)]
    with pytest.raises(ValueError, match=r"5 of 5 views lie outside their rooms' lives.*--utc_offset_hours"):
        read_source("log", write(tmp_path, [header, *late]))


def test_clocks_without_a_zone_are_local(tmp_path):
    path = write(tmp_path, ["user,author,start,stop", "1,a,2025-05-05 08:00:00,2025-05-05 08:10:00"])
    assert views(read_log(path, Options(utc_offset_hours=8.0))) == [("1", "a/1", "a", T, 10 * MIN)]
    assert views(read_log(path))[0][3] == T + 480 * MIN


def test_ids_are_strings_or_numbers_and_are_not_merged(tmp_path):
    rows = [f"{u},a,{T + i},{MIN}" for i, u in enumerate(("7", "7.0", "007", "10", "9"))]
    assert read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows])).users["source_id"].to_list() == [
        "007", "10", "7", "9"]
    assert read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows[:2], *rows[3:]])
                    ).users["source_id"].to_list() == ["7", "9", "10"]  # all are numbers: in their order


def test_limited_to_the_first_people(tmp_path):
    path = write(tmp_path, [HEADER, *ROWS])
    some = read_log(path, Options(limit_users=1))
    assert views(some) == WANTED[:2]
    assert some.users["source_id"].to_list() == ["ann"]
    assert some.report.dropped == {"row of a person beyond the first 1 (limit_users)": 1}
    read_source("log", path, Options(limit_users=1))  # most of the rows that are asked for are there


@pytest.mark.parametrize("lines, options, said", [
    (["user,start_ms,watch_ms", f"1,{T},5"], {}, ["lacks the column 'author'", "found user, start_ms", "--columns="]),
    (["user,author,start_ms", f"1,a,{T}"], {}, ["no column says how long a view is", "--default_watch_s=60"]),
    (["user,author,when,watch_s", "1,a,5,5"], {"columns": "start=when"}, ["column when: numbers like 5 are no date",
                                                                         "start=when:ms"]),
    (["user,author,start,watch_s", f"1,a,{T},5"], {"columns": "start=start:s"}, ["milliseconds since 1970, not sec"]),
    ([HEADER, ROWS[0], *[f"1,r,a,soon,{i}" for i in range(3)]], {}, ["only 1 of 4 rows", "start_ms is not a time",
                                                                   "line 3: soon; views.csv, line 4"]),
    ([HEADER, *[f"1,r,a,{T + i},5" for i in range(50)], *[f"1,r,a,{T // 1000 + i},5" for i in range(20)]], {},
     ["20 of 70 rows have a time in another unit", "line 52: 1746403200"]),
    ([HEADER, *[f"1,r,a,{T + i},{90_000_000 + i}" for i in range(5)]], {}, ["half of the views last a day", "unit"]),
    ([HEADER], {}, ["no row of the log can be used"]),
    (["user,author,start,watch_s", "1,a,1970-01-01 00:00:05,5"], {}, ["column start", "no log is from"]),
    (["user,author,start,watch_s", "1,a,2150-01-01,5"], {}, ["Thu 1 Jan 2150 00:00 UTC", "no log is from"]),
    ([HEADER, *ROWS, "1,r,a,soon,5"], {"bad_rows": "stop"}, ["views.csv, line 5, column start_ms: 'soon' is not a"]),
])
def test_what_cannot_be_understood_is_refused_with_the_remedy(tmp_path, lines, options, said):
    with pytest.raises(ValueError) as error:
        read_source("log", write(tmp_path, lines), options_of(**options))
    for part in said:
        assert part in str(error.value)


def test_one_far_date_is_left_out_and_named(tmp_path):
    tables = read_source("log", write(tmp_path, [HEADER, *ROWS, f"x,r1,lee,253402300799000,{MIN}",
                                                 f"x,r1,lee,{T},253402300799000"]))
    assert views(tables) == WANTED
    assert tables.report.examples == {
        "start_ms is in another unit than the column, or years from its other times": ["views.csv, line 5: "
                                                                                       "253402300799000"],
        "watch_ms is not a length of time, 0 or more": ["views.csv, line 6: 253402300799000"]}


HEADERS = ("Viewer ID,Room ID,streamer_name,Joined At (UTC),Watch (ms)", "v_user,v_room,v_streamer,v_start,v_watch_ms",
           "user_uuid,room_uuid,author_uuid,start_ts,watch_millis", "用户ID,直播间ID,主播ID,开始时间,观看时长_ms",
           "utilisateur,salle,chaîne,début,durée_ms", "Nutzer,Raum,Kanal,Beginn,Dauer_ms",
           "customer id,livestream id,creator id,watch start time,watch duration (ms)",
           "from_user_id,show_id,to_streamer_id,event_start,time_spent_ms",
           '"user","room","streamer","start\n(UTC)",watch_ms')


@pytest.mark.parametrize("header", HEADERS)
def test_names_of_columns_in_other_words(tmp_path, header):
    assert views(read_log(write(tmp_path, [header, *ROWS]))) == WANTED


def test_a_zone_in_a_name_goes_before_the_option(tmp_path):
    rows = [f"{u},{r},{a},{clock(s + 480 * MIN)},{w}" for u, r, a, s, w in WANTED]
    for header, offset in ((HEADER, 8), (HEADER.replace("start_ms", "Start (UTC+8)"), 0),
                           (HEADER.replace("start_ms", "start_gmt+08:00"), -3)):
        assert views(read_log(write(tmp_path, [header, *rows]), Options(utc_offset_hours=offset))) == WANTED


CELLS = {
    "decimal commas": ("user;room;streamer;start_ms;watch_s;gift",
                       lambda u, r, a, s, w: f"{u};{r};{a};{s};{w // 1000},0;1.250,50"),
    "thousands": (HEADER + ",gift", lambda u, r, a, s, w: f'{u},{r},{a},{s},"{w:,}","$1,250.50"'),
    "units": ("user,room,streamer,start,watch,tips", lambda u, r, a, s, w: f"{u},{r},{a},{s},{w // MIN}m 0s,€1250.50"),
    "ISO lengths": ("user,room,streamer,start,watch,gift",
                    lambda u, r, a, s, w: f"{u},{r},{a},{s},PT{w // MIN}M,1250.5"),
    "pandas": ("user,room,streamer,start,watch,gift",
               lambda u, r, a, s, w: f"{u},{r},{a},{s},0 days 00:{w // MIN}:00,1250.50"),
    "digits": (HEADER + ",gift", lambda u, r, a, s, w: f"{u},{r},{a},{clock(s, '%Y%m%d%H%M%S')},{w},1250.50"),
    "Hive": ("\1".join((*HEADER.split(","), "gift")), lambda *v: "\1".join(map(str, (*v, 1250.5)))),
    "comments above": ("# exported\n\n" + HEADER + ",gift", lambda u, r, a, s, w: f"{u},{r},{a},{s},{w},1250.5"),
    "sep=": ("sep=;\n" + HEADER.replace(",", ";") + ";gift", lambda u, r, a, s, w: f"{u};{r};{a};{s};{w};1250,5"),
}


@pytest.mark.parametrize("form", CELLS)
def test_numbers_as_people_write_them(tmp_path, form):
    header, row = CELLS[form]
    tables = read_log(write(tmp_path, [header, *(row(*view) for view in WANTED)]))
    assert views(tables) == WANTED
    assert set(tables.interactions["gift_value"]) == {1250.5}


def test_day_and_month_are_told_or_asked_for(tmp_path):
    def log(days, form):
        moved = [(u, r, a, s + days * 1440 * MIN, w) for u, r, a, s, w in WANTED]
        return write(tmp_path, [HEADER, *(f"{u},{r},{a},{clock(s, form)},{w}" for u, r, a, s, w in moved)]), moved

    for form in ("%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M %p", "%d.%m.%y %H:%M"):
        path, moved = log(20, form)
        assert views(read_log(path)) == moved
    path, moved = log(1, "%d/%m/%Y %H:%M")
    with pytest.raises(ValueError, match=r"start_ms: dates like '06/05/2025 00:00' may begin .*start=start_ms:dmy"):
        read_log(path)
    assert views(read_log(path, Options(parse_columns("start=start_ms:dmy")))) == moved
    june = {s - T for _, _, _, s, _ in views(read_log(path, Options(parse_columns("start=start_ms:mdy"))))}
    assert min(june) == 31 * 1440 * MIN
    assert "clock, day first" in read_log(path, Options(parse_columns("start=start_ms:dmy"))).report.about[0]


@pytest.mark.parametrize("content, said", [
    (b'{"user": 1, "start": 2}\n', "is JSON"), (b"<html><body>404</body></html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"), (b"PAR1xx", "ends in .parquet"),
    (b"BZh91AY", "packed with bzip2"), (b"\x28\xb5\x2f\xfdxx", "packed with Zstandard"), (b"ARROW1\0\0", "Arrow file"),
    (b"\xd0\xcf\x11\xe0x", "spreadsheet"), ("user,room,stréamer,start\n".encode("latin-1"), "iconv"), (b"", "empty"),
])
def test_what_is_no_csv_is_named(tmp_path, content, said):
    (tmp_path / "views.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_log(tmp_path / "views.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "views.csv").write_bytes("\n".join([HEADER, *ROWS, ""]).encode(encoding))
    assert views(read_log(tmp_path / "views.csv")) == WANTED


def test_types_of_parquet(tmp_path):
    user, room, author, start, watch = map(list, zip(*WANTED, strict=True))
    moment = pl.Series(start).cast(pl.Datetime("ms"))
    zoned = moment.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    times = {"ns": moment.cast(pl.Datetime("ns")), "zone": zoned,
             "float": pl.Series([s / 1000 for s in start]), "decimal": pl.Series(start).cast(pl.Decimal(20, 0)),
             "text": [clock(s) for s in start]}
    lengths = {"duration": pl.Series(watch).cast(pl.Duration("ms")),
               "time": (pl.Series(watch) * 1_000_000).cast(pl.Time),
               "decimal": pl.Series(watch).cast(pl.Decimal(12, 2))}
    names = {"categorical": pl.Series(user).cast(pl.Categorical), "bytes": [u.encode() for u in user]}
    path = tmp_path / "views.PARQUET"
    for moments, length, name in ((m, "duration", user) for m in times.values()):
        pl.DataFrame({"user": name, "room": room, "streamer": author, "start": moments, "watch": lengths[length],
                      "tags": [[1], [], None], "like": [None] * 3}).write_parquet(path)
        assert views(read_log(path)) == WANTED
    for length in lengths.values():
        for name in names.values():
            pl.DataFrame({"user": name, "room": room, "streamer": author, "start_ms": start, "watch_ms": length}
                         ).write_parquet(path)
            assert views(read_log(path)) == WANTED
    pl.DataFrame({"user": pl.Series([2**64 - 1] * 3, dtype=pl.UInt64), "streamer": author, "start": start,
                  "watch_ms": watch, "room": pl.Series([None] * 3, dtype=pl.Null)}).write_parquet(path)
    assert read_log(path).users["source_id"].to_list() == [str(2**64 - 1)]
    pl.DataFrame({"user": [["a"]] * 3, "streamer": author, "start": start, "watch_ms": watch}).write_parquet(path)
    with pytest.raises(ValueError, match=r"views.PARQUET, column user: holds List\(String\)"):
        read_log(path)
    for odd in (lengths["duration"], lengths["time"]):
        pl.DataFrame({"user": user, "streamer": author, "start": odd, "watch_ms": watch}).write_parquet(path)
        with pytest.raises(ValueError, match=r"views.PARQUET, column start: holds .* where dates are needed"):
            read_log(path)


def test_a_parquet_file_that_is_cut_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "views.parquet"
    pl.DataFrame({"user": range(5000), "streamer": ["a"] * 5000, "start": range(T, T + 5000), "watch_ms": range(5000)}
                 ).write_parquet(path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[-8:-4], "little") + 8
    path.write_bytes(whole[:4] + whole[-size:])  # a footer that points beyond the file's end
    with pytest.raises(ValueError, match=r"views.parquet cannot be read .*copy or download it again"):
        read_log(path)


def test_events_in_other_words_and_those_of_no_kind(tmp_path):
    header = "user,room,streamer,time,event"
    moves = [(u, r, a, t, word) for u, r, a, s, w in WANTED
             for t, word in ((s + w, "User Left"), (s, "user.joined-room"))]
    path = write(tmp_path, [header, *(",".join(map(str, row)) for row in moves), f"ann,r1,lee,{T + 5},ping",
                            f"ann,r1,lee,{T + 6},点赞"])
    tables = read_log(path)
    assert views(tables) == WANTED
    assert tables.interactions["like"].sum() == 1
    assert tables.report.dropped == {
        "event is none of enter, leave, view, show, like, comment, follow, share, gift": 1}
    assert list(tables.report.examples.values()) == [["views.csv, line 8: ping"]]


def test_numbers_that_no_clock_can_hold_are_dropped(tmp_path):
    bad = ["9" * 20, "9" * 30, "1e300", "inf", "-1e18", str(2**63 - 1)]
    rows = [f"{u},{r},{a},{s // 1000 + i},{w}" for i in range(7) for u, r, a, s, w in WANTED]
    path = write(tmp_path, ["user,room,streamer,start_s,watch_ms", *rows, *(f"eve,r1,lee,{text},1" for text in bad),
                            *(f"eve,r1,lee,{T // 1000},{text}" for text in bad)])
    tables = read_log(path)
    assert tables.report.rows_kept == 21
    assert sum(tables.report.dropped.values()) == 12
    assert "eve" not in tables.users["source_id"]


def test_a_limit_does_not_make_a_log_unusable(tmp_path):
    rows = [f"u{i:02d},r,a,{T + i},5" for i in range(40)]
    path = write(tmp_path, [HEADER, *rows, *["u50,r,a,soon,5"] * 10])
    tables = read_source("log", path, options_of(limit_users=2))
    assert (tables.report.rows_kept, sum(tables.report.dropped.values())) == (2, 48)
