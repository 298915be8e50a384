"""What can be read of metrics.jsonl: lines in the order of iterations, of which a long run has tens of thousands."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

LONGEST_ROW = 4096  # bytes of a line, at most nearly always
LARGEST = 1 << 63  # no count and no metric is larger
RATES = ("win", "tie", "loss", "win_low", "win_high")
EVALUATION = {"reward_mean": float, "win": float, "win_low": float, "win_high": float, "margin": float}
ITERATION = re.compile(rb'"iteration":\s*(\d{1,19})\b')
MARK = b'"evaluation"'  # in every line of an evaluation: parsing the others to look for one would take long


class Metrics:
    """The content of the file at one time. Only the lines that are asked for are parsed; one that a crash has torn, or
    that has no iteration, is left out, as is every value that nothing measures.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._places: list[tuple[int, int]] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """All rows in order."""
        return _rows(self.data.splitlines())

    def since(self, iteration: int, most: int) -> list[dict[str, Any]]:
        """The first rows after `iteration`: `most`, and what else is of the last of these iterations."""
        rows: list[dict[str, Any]] = []
        place = self._first_after(iteration)
        while place < len(self.data):
            start, end = self._line_at(place)
            for row in _rows([self.data[start:end]]):
                if len(rows) >= most and row["iteration"] != rows[-1]["iteration"]:
                    return rows
                rows.append(row)
            place = end + 1
        return rows

    def thinned(self, most: int) -> list[dict[str, Any]]:
        """Rows spread evenly over the run, the first and the last among them: at most `most` of evaluations and about
        as many of all others."""
        data = self.data
        if len(data) < most * LONGEST_ROW and data.count(b"\n") <= most:
            return self.rows()
        evaluations = [start for start, _ in self._evaluation_places()]
        places = (round(part * (len(data) - 1) / (most - 1)) for part in range(most))
        others = {self._line_at(place)[0] for place in places} - set(evaluations)
        if last := next((start for start in self._starts_from_end() if start not in evaluations), None):
            others.add(last)
        kept = sorted(others | set(_spread(evaluations, most)))
        return _rows(data[start : self._line_at(start)[1]] for start in kept)

    def evaluations(self, of: Container[int] | None = None) -> list[dict[str, Any]]:
        """The rows of complete evaluations: each has the numbers named in `EVALUATION`; with `of` only those of these
        iterations."""
        lines = (self.data[start:end] for start, end in self._evaluation_places())
        if of is not None:
            lines = (line for line in lines if (found := ITERATION.search(line)) and int(found[1]) in of)
        return list(_evaluations(lines))

    def last_evaluation(self) -> dict[str, Any] | None:
        """The last of `evaluations`."""
        return next(_evaluations(self.data[start:end] for start, end in reversed(self._evaluation_places())), None)

    def _evaluation_places(self) -> list[tuple[int, int]]:
        """Where the lines that may be of evaluations begin and end."""
        if self._places is None:
            self._places = []
            place = self.data.find(MARK)
            while place >= 0:
                self._places.append(self._line_at(place))
                place = self.data.find(MARK, self._places[-1][1])
        return self._places

    def _line_at(self, place: int) -> tuple[int, int]:
        """Where the line with the byte at `place` begins and ends, without its line break."""
        end = self.data.find(b"\n", place)
        return self.data.rfind(b"\n", 0, place) + 1, len(self.data) if end < 0 else end

    def _starts_from_end(self) -> Iterator[int]:
        """Where lines begin, from the last to the first."""
        end = len(self.data)
        while end > 0:
            start = self.data.rfind(b"\n", 0, end - 1) + 1
            yield start
            end = start

    def _first_after(self, iteration: int) -> int:
        """Where a line begins from which on no row of a later iteration is missing, by bisection."""
        low, high = 0, len(self.data)
        while low < high:
            at, end = self._line_at((low + high) // 2)
            behind = end + 1
            while (row := _row(self.data[at:end])) is None and at > low:  # torn by a crash
                at, end = self._line_at(at - 1)
            if row is None or row["iteration"] <= iteration:
                low = behind
            else:
                high = at
        return low


def _rows(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """What can be used of the lines."""
    found = [row for row in map(_row, lines) if row]
    for row in found:
        # Nearly every value is a float: for those the test stands here, where it costs no call.
        unfit = [
            name
            for name, value in row.items()
            if not (type(value) is float and -LARGEST <= value <= LARGEST and name not in RATES)
            and not _expected(name, value)
        ]
        for name in unfit:
            del row[name]
    return found


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    usable = isinstance(row, dict) and type(row.get("iteration")) is int and 0 <= row["iteration"] < LARGEST
    return row if usable else None


def _expected(name: str, value: Any) -> bool:
    """Whether a metric is what readers rely on: the kind is a text, everything else is null or a number that can be
    shown, rates from 0 to 1."""
    if name == "kind":
        return isinstance(value, str)
    if value is None:
        return True
    low, high = (0, 1) if name in RATES else (-LARGEST, LARGEST)
    return type(value) in (int, float) and low <= value <= high


def _evaluations(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        for row in _rows([line]):
            if row.get("kind") == "evaluation" and all(row.get(name) is not None for name in EVALUATION):
                yield row


def _spread(values: Sequence[int], most: int) -> Iterable[int]:
    """At most so many of the values at even distances, with the first and the last."""
    if len(values) <= most:
        return values
    return (values[round(place * (len(values) - 1) / (most - 1))] for place in range(most))
