"""What a person is asked next: a function of the folder's records alone, so that nothing is lost with a page."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..errors import UserError
from .folder import Agreement, PairFolder, PairRecords
from .records import VoteRecord

REPEAT_EVERY = 10
"""Every tenth question is a pair that the person has voted on before, with its sides swapped."""
APART = 5
"""Votes that lie between a pair and its repetition at least."""


@dataclass(frozen=True)
class Question:
    """A pair to vote on. `swapped`: its B is shown on the left; `turn`: how many votes the person gave before."""

    pair: str
    swapped: bool
    repeated: bool
    turn: int


@dataclass(frozen=True)
class VotingProgress:
    """How many of `pairs` pairs a person has voted on, and how often the same verdict was given again."""

    voted: int
    pairs: int
    agreement: Agreement


def votes_of(records: PairRecords, who: str) -> list[VoteRecord]:
    """A person's votes that count, oldest first."""
    return [vote for vote in records.votes.values() if vote.who == who]


def next_question(records: PairRecords, who: str, after: str = "") -> Question | None:
    """What this person is asked next; None when there is no pair without a vote of the person.

    `after`: the question that will follow a vote on this pair, so that its clips can be loaded in advance.
    """
    own = votes_of(records, who)
    turn, seen = len(own) + bool(after), {vote.pair for vote in own} | {after}
    if turn % REPEAT_EVERY == REPEAT_EVERY - 1:
        recent = {vote.pair for vote in own[-APART:]} | {after}
        for vote in own:
            times = sum(other.pair == vote.pair for other in own)
            if times == 1 and vote.verdict != "skip" and vote.pair not in recent:
                return Question(vote.pair, not vote.swapped, True, turn)
    for pair in records.pairs:
        if pair not in seen:
            return Question(pair, _coin(pair, who), False, turn)
    return None


def voting_progress(records: PairRecords, who: str) -> VotingProgress:
    seen = {vote.pair for vote in votes_of(records, who)}
    return VotingProgress(len(seen), len(records.pairs), records.agreement(who))


def answer(folder: PairFolder, pair: str, verdict: str, who: str, turn: int, swapped: bool) -> VoteRecord:
    """Keep a vote. Raises UserError when the person gave another vote since the question was asked, as a second click
    does, and for a pair that the folder does not have."""
    records = folder.read()
    if pair not in records.pairs:
        raise UserError("this pair is no longer in the folder; open the votes again")
    if len(votes_of(records, who)) != turn:
        raise UserError("this question was answered already; the next one is shown")
    return folder.vote(pair, verdict, who, swapped)


def _coin(pair: str, who: str) -> bool:
    return bool(hashlib.sha256(f"{pair} {who}".encode()).digest()[0] & 1)
