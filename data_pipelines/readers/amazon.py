"""Reader of item sequences without times, the form in which the Amazon review sets are passed around.

Two forms are read: a text file with one line a person (`person item item …`, oldest first), and a JSON object (person →
list of items). Every item can be recommended always, and the protocol of the published figures is leave-one-out: a
person's last item is the test, the one before it the validation.

A log of this project is split by time, so every item gets a time by its place from the end of its person's sequence:
the last of everybody in the last minute, the ones before it in the minute before, and so on. With valid_hours =
test_hours = 1/60 (experiments/configs/amazon.py), the split by time is then leave-one-out exactly. These times mean
nothing else.
"""

import json
from pathlib import Path

import polars as pl

from data_pipelines.readers.rows import DEFAULTS, EXAMPLES, Counts, Options
from data_pipelines.readers.text_files import ENDINGS, not_text, open_unpacked
from data_pipelines.tables import Tables, sort_interactions

STEP_MS, WATCH_MS = 60_000, 1000
LEAST = 3  # one item to learn from, one to validate, one to test
SHORT = f"item of a person with fewer than {LEAST}"
BEYOND = "item of a person beyond the first {:,} (limit_users)"
BAD = "item of a person whose sequence holds something other than whole numbers"


def read_amazon(path: str | Path, options: Options = DEFAULTS) -> Tables:
    """Canonical tables of sequences: an item is an author with one room that is always on air.

    Raises:
      FileNotFoundError: there is no such file. ValueError: it is neither form, or empty, or, where bad rows stop the
        reader, a line is wrong, with its number.
    """
    path, counts = Path(path), Counts(options.stop)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: name a file of sequences (Beauty.txt, or a JSON object person → "
                                "items)")
    sequences = _from_json(path) if path.suffix == ".json" else _from_text(path)
    if not sequences:
        raise ValueError(f"{path}: the file is empty; one line a person is needed (person item item …)")
    rows, order = [], sorted(sequences, key=lambda row: _key(row[1]))
    for person, (line, name, items) in enumerate(order):
        counts.rows_read += len(items)
        reason = BAD if not all(item.isdigit() for item in items) else SHORT if len(items) < LEAST else ""
        if options.limit_users is not None and person >= options.limit_users:
            counts.add("dropped", BEYOND.format(options.limit_users), len(items))
        elif reason:
            if options.stop:
                raise ValueError(f"{path}, line {line}: {reason} (person {name}). --bad_rows=drop leaves such people "
                                 "out and counts them")
            counts.add("dropped", reason, max(len(items), 1))
            counts.rows_read += not items
            if len(counts.examples.setdefault(reason, [])) < EXAMPLES:
                counts.examples[reason].append((path.name, line, f"person {name}"))
        else:
            rows.append((name, items))
    longest = max((len(items) for _, items in rows), default=0)
    names = sorted({item for _, items in rows for item in items}, key=_key)
    number = {name: i for i, name in enumerate(names)}
    item = pl.Series([number[item] for _, items in rows for item in items], dtype=pl.Int32)
    views = pl.DataFrame({
        "user_id": pl.Series([i for i, (_, items) in enumerate(rows) for _ in items], dtype=pl.Int32),
        "room_id": item, "author_id": item,
        "start_ms": pl.Series([STEP_MS * (longest - len(items) + k) for _, items in rows for k in range(len(items))],
                              dtype=pl.Int64)})
    views = views.with_columns(
        pl.lit(WATCH_MS, pl.Int64).alias("watch_ms"), pl.lit(True).alias("click"),
        *(pl.lit(0, pl.Int32).alias(name) for name in ("like", "comment", "follow", "share")),
        pl.lit(0, pl.Float32).alias("gift_value"), pl.lit(False).alias("negative"))
    ids = pl.Series(range(len(names)), dtype=pl.Int32)
    rooms = pl.DataFrame({"room_id": ids, "author_id": ids}).with_columns(
        pl.lit(0, pl.Int64).alias("start_ms"), pl.lit(None, pl.Int64).alias("end_ms"),
        pl.lit(-1, pl.Int32).alias("category"), pl.lit(-1, pl.Int32).alias("title_embedding"))
    about = [f"sequences of {len(rows):,} people over {len(names):,} items; times are places from the end"]
    return Tables(
        sort_interactions(views), rooms,
        pl.DataFrame({"author_id": ids, "source_id": pl.Series(names, dtype=pl.String)}),
        pl.DataFrame({"user_id": pl.Series(range(len(rows)), dtype=pl.Int32),
                      "source_id": pl.Series([name for name, _ in rows], dtype=pl.String)}),
        counts.report(str(path), (len(views), len(views)), about), rooms_are_true_lifetimes=True)


def _key(name: str) -> tuple[int, str]:
    """Numbers in the order of numbers."""
    return (int(name), "") if name.isdigit() else (2**62, name)


def _from_text(path: Path) -> list[tuple[int, str, list[str]]]:
    """(line, person, items) of every line that is not blank."""
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{path}: sequences come as text ({', '.join(ENDINGS)}) or as .json")
    try:
        with open_unpacked(path) as stream:
            lines = stream.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(not_text(path, error)) from error
    cells = [(line, text.split()) for line, text in enumerate(lines, 1)]
    return _once(path, [(line, found[0], found[1:]) for line, found in cells if found])


def _from_json(path: Path) -> list[tuple[int, str, list[str]]]:
    """As `_from_text`; the "line" is the person's place in the object, from 1."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): an object person → list of items is needed") from error
    if not isinstance(found, dict) or not all(isinstance(items, list) for items in found.values()):
        raise ValueError(f"{path} must be an object person → list of items")
    return [(line, person, [str(item) for item in items]) for line, (person, items) in enumerate(found.items(), 1)]


def _once(path: Path, rows: list[tuple[int, str, list[str]]]) -> list[tuple[int, str, list[str]]]:
    first: dict[str, int] = {}
    for line, person, _ in rows:
        if first.setdefault(person, line) != line:
            raise ValueError(f"{path}, line {line}: person {person} has a line already, line {first[person]}: a person "
                             "has one line. A file of one pair a line is read with --source=log")
    return rows


def read_codes(path: str | Path, items: list[str]) -> list[list[int]]:
    """The codes of every item from a JSON object item → list of codes, in the order of `items`.

    Raises: FileNotFoundError; ValueError where an item has none, codes are not whole numbers or not equally many.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: name a JSON object item → list of codes")
    try:
        table = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path} must be an object item → list of codes")
    if missing := [item for item in items if item not in table]:
        raise ValueError(f"{path} has no codes for {len(missing):,} of {len(items):,} items of the log (item "
                         f"{missing[0]}): it belongs to another file of sequences")
    width = len(next(iter(table.values())))
    for item in items:
        codes = table[item]
        if not isinstance(codes, list) or len(codes) != width or not all(
                isinstance(code, int) and not isinstance(code, bool) and code >= 0 for code in codes):
            raise ValueError(f"{path}: item {item} has the codes {codes!r}; {width} whole numbers, 0 or more, are "
                             "needed")
    return [table[item] for item in items]
