"""Output: tables and results on stdout, progress and notes on stderr. Nothing else prints.

On a terminal tables are drawn and progress is a bar; in a pipe both are plain lines.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Progress = Callable[[int, int], None]

_UNITS = ("B", "kB", "MB", "GB", "TB")
_COLUMN = 36  # characters below which a column of running text is hard to read
_FRAME = 0.06  # seconds between two drawings of a live table


def result(data: Any) -> None:
    """One machine-readable result on stdout; escaped where stdout cannot show every character."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(data, ensure_ascii=not unicode, allow_nan=False) + "\n")


def line(text: str = "") -> None:
    """A line of the result on stdout."""
    sys.stdout.write(text + "\n")


def piece(text: str) -> None:
    """A piece of running text on stdout, at once; on a terminal control characters are escaped."""
    sys.stdout.write(tame(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def tame(text: str) -> str:
    """``text`` with the characters escaped that a terminal would obey, but for breaks and tabs."""
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) == "Cc" and c not in "\n\t"
        else c
        for c in text
    )


def note(text: str) -> None:
    """A remark on stderr."""
    status(f"note: {text}")


def status(text: str) -> None:
    """A line of progress on stderr. One that is closed turns no success into a failure."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    stream: TextIO | None = None,
) -> None:
    """A table on stdout: drawn on a terminal, aligned columns in a pipe.

    The first ``left`` columns are left-aligned, the others right-aligned. Control characters in
    names are escaped: a checkpoint may call its tensors anything.
    """
    stream = stream or sys.stdout
    title, columns = plain(title), [plain(column) for column in columns]
    rows = [[plain(cell).replace("\n", "\\n") for cell in row] for row in rows]
    if stream.isatty():
        _rich_table(title, columns, rows, left, stream)
        return
    cells = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    if title:
        stream.write(title + "\n")
    for row in cells:
        parts = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        stream.write("  ".join(parts).rstrip() + "\n")


def plain(text: str) -> str:
    """``text`` with control characters escaped, but for line breaks of our own titles."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _rich_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, stream: TextIO
) -> None:
    from rich.console import Console

    terminal = Console(file=stream).width
    for gap in (1, 0):
        drawn = _drawn(title, columns, rows, left, gap)
        needed = Console(file=stream, width=10_000).measure(drawn).maximum
        if needed <= terminal:
            break
    # A narrow terminal wraps a line; it must not cost a digit.
    Console(file=stream, width=max(terminal, needed), highlight=False).print(drawn)


def _drawn(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, gap: int
) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*[Text(cell) for cell in row])
    return drawn


def fits_columns(count: int) -> bool:
    """Whether stdout is a terminal on which ``count`` texts can stand side by side."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    terminal = Console(file=sys.stdout)
    return not terminal.is_dumb_terminal and terminal.width >= count * _COLUMN


@contextmanager
def columns(titles: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    """Running texts side by side on a terminal: ``add(column, piece)``, drawn as they come.

    An empty piece draws what is left to draw. While they run, the ends of texts that are longer
    than the terminal is high are shown; afterwards, or after an interrupt, all of them stays.
    """
    from rich.console import Console
    from rich.live import Live

    terminal = Console(file=sys.stdout, highlight=False)
    texts = [""] * len(titles)
    drawn = 0.0

    def add(column: int, text: str) -> None:
        nonlocal drawn
        texts[column] += tame(text)
        if not text or time.monotonic() - drawn > _FRAME:
            live.update(_side_by_side(terminal, titles, texts, whole=False), refresh=True)
            drawn = time.monotonic()

    live = Live(
        _side_by_side(terminal, titles, texts, whole=True),
        console=terminal,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        try:
            yield add
        finally:
            live.update(_side_by_side(terminal, titles, texts, whole=True))


def _side_by_side(
    terminal: Console, titles: Sequence[str], texts: Sequence[str], *, whole: bool
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    gap = 2
    width = terminal.width // len(titles) - gap  # rich counts a gap after the last column, too
    heads = [Text(plain(title)).wrap(terminal, width) for title in titles]
    bodies = [Text(text).wrap(terminal, width) for text in texts]
    room = max(terminal.height - max(map(len, heads)) - 2, 1)  # a rule, and a line for the cursor
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    for head in heads:
        drawn.add_column(Text("\n").join(head), width=width)
    drawn.add_row(*(Text("\n").join(body[:] if whole else body[-room:]) for body in bodies))
    return drawn


@contextmanager
def progress(
    what: str | Callable[[], str], *, unit: str = "bytes", quiet: bool = False
) -> Iterator[Progress]:
    """A progress callback ``(done, total)``: a bar on a terminal, a line every few seconds else.

    what: a title, or what says the present one. unit: ``bytes``, or the name of what is counted.
    """
    title = what if callable(what) else lambda: what
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _rich_progress(title, unit) as callback:
            yield callback
    else:
        yield _plain_progress(title, unit)


def _silent(_done: int, _total: int) -> None:
    """Progress that is not shown."""


@contextmanager
def _rich_progress(title: Callable[[], str], unit: str) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    amount: tuple[rich_progress.ProgressColumn, ...] = (
        (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
        if unit == "bytes"
        else (
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn(unit + "{task.fields[rate]}", markup=False),
        )
    )
    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        *amount,
        rich_progress.TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
    with bar:
        task = bar.add_task(title(), total=None, rate="")
        shown = bar.tasks[0]

        def update(done: int, total: int) -> None:
            rate = f", {shown.speed:,.0f}/s" if shown.speed else ""
            bar.update(task, completed=done, total=total, rate=rate, description=title())

        yield update


def _plain_progress(title: Callable[[], str], unit: str, every: float = 5.0) -> Progress:
    start = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        rate = done / (now - start)
        left = (total - done) / rate if rate else 0.0
        shown = f"{size(done)} of {size(total)}, {size(int(rate))}/s"
        if unit != "bytes":
            shown = f"{done:,} of {total:,} {unit}, {rate:,.0f}/s"
        status(f"{title()}: {shown}, {left:.0f} s left")

    return update


def size(nbytes: int) -> str:
    """Bytes in decimal units: 1.5 GB."""
    if nbytes < 1000:
        return f"{nbytes} B"
    power = min((len(str(nbytes)) - 1) // 3, len(_UNITS) - 1)
    return f"{nbytes / 1000**power:.3g} {_UNITS[power]}"


def share(value: float) -> str:
    """A share in two decimals without the leading zero: .07, 1.00."""
    return f"{value:.2f}".removeprefix("0")


def seconds(value: float) -> str:
    """A duration: 0.12 s, 34 s, 5 min 20 s, 2 h 05 min."""
    if value < 10:
        return f"{value:.2g} s"
    if value < 100:
        return f"{value:.0f} s"
    if value < 3600:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    return f"{int(value) // 3600:,} h {int(value) % 3600 // 60:02d} min"
