"""The face report as lines and rows of text."""

from __future__ import annotations

from .report import FaceReport, PersonReport

UNJUDGED = "too small or blurred to judge"


def headline_text(report: FaceReport) -> str:
    """`faces 0.87 (100% of the frames judged)`, or that no face can be judged."""
    if report.headline is None:
        return f"faces: {UNJUDGED}"
    return f"faces {report.headline:.2f} ({report.judged:.0%} of the frames judged)"


def rows(report: FaceReport) -> list[dict[str, str]]:
    """One row of texts per person, for a table."""
    return [{"person": str(number)} | _row(person) for number, person in enumerate(report.people, 1)]


def _row(person: PersonReport) -> dict[str, str]:
    return {
        "score": UNJUDGED if person.unjudged else _number(person.score),
        "similarity": _number(person.similarity),
        "margin": _number(person.margin, "+.2f"),
        "worst second": _number(person.worst_second),
        "drift": _number(person.drift, "+.2f"),
        "seen": _number(person.seen, ".0%"),
        "missing": _number(person.missing, ".0%"),
        "swapped": _number(person.swapped, ".0%"),
        "twice": _number(person.duplicated, ".0%"),
        "copied": _number(person.pasted, ".0%"),
        "face": _number(person.size, ".0f", " px"),
        "judged": _number(person.judged, ".0%"),
    }


def _number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def notes(report: FaceReport) -> list[str]:
    """The alarms, and what makes the numbers less sure."""
    found = [alarm.text for alarm in report.alarms]
    found += [
        f"the reference images of person {a + 1} and person {b + 1} look alike: trust the margin, not the similarity"
        for a, b in report.alike
    ]
    return found


def person_lines(report: FaceReport) -> list[str]:
    """One line per person: `person 1: score 0.93, similarity 0.95, ...`, without what is not known."""
    return [
        f"person {row.pop('person')}: " + ", ".join(f"{name} {text}" for name, text in row.items() if text != "-")
        for row in rows(report)
    ]
