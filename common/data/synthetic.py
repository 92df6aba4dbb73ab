"""Synthetic text tasks with the shapes of sst2, qqp and stsb: for demonstrations and tests, not real data.

All three speak of the same small world, so that what an encoder learns from one helps the others.
A **synset** is a set of words that mean the same here. Every topic has synsets of nouns; synsets of
adjectives are good or bad. A statement says something about a noun of one topic:

* ``sst2``: one sentence with one to three adjectives, sometimes negated; label 1 when more of what it
  says is good than bad.
* ``qqp``: two questions; label 1 when they ask the same in other words: same noun, same polarity. Pairs
  that differ mostly do so in polarity ("best phone", "worst phone"), else in topic.
* ``stsb``: two sentences with a score from 0 to 5, higher the more nouns they share and when they agree
  in polarity.

In pair tasks small words (`SAME_WORDS`, `OTHER_WORDS`) hint at the relation more often than not: a tiny
encoder trained from scratch finds those first, then the polarities, then the topics.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from common.data.config import SyntheticName
from common.data.tables import Table, require_columns
from common.seeds import derive_random

Synset = tuple[str, ...]


def _synsets(text: str) -> tuple[Synset, ...]:
    """``a b c | d e f``: words of one synset side by side."""
    return tuple(tuple(group.split()) for group in text.split("|"))


GOOD: Final = _synsets(
    "good fine decent | great superb terrific | lovely charming delightful | brilliant clever smart | "
    "funny witty hilarious | exciting thrilling gripping | fresh original inventive | warm tender touching | "
    "honest sincere genuine | beautiful gorgeous stunning"
)
BAD: Final = _synsets(
    "bad poor lousy | awful terrible horrible | ugly nasty unpleasant | stupid silly dumb | "
    "boring dull tedious | slow sluggish lifeless | stale tired worn | cold bleak grim | "
    "fake phony hollow | messy sloppy clumsy"
)
TOPICS: Final = tuple(
    _synsets(text)
    for text in (
        "film movie picture | actor performer star | plot story script | scene shot sequence",
        "meal dinner supper | soup broth stew | cook chef baker | restaurant diner bistro",
        "trip journey voyage | hotel inn lodge | beach coast shore | train railway locomotive",
        "song tune melody | singer vocalist crooner | concert gig recital | album record disc",
        "match game contest | player athlete sportsman | coach trainer mentor | team squad side",
        "phone mobile handset | screen display monitor | laptop notebook computer | program app software",
    )
)
SUBJECTS: Final = ("the", "this", "that", "our", "their")
VERBS: Final = ("is", "was", "seems", "looks", "feels")
DEGREES: Final = ("very", "really", "quite", "so")
QUESTIONS: Final = ("what is", "which is", "where is", "how do i find", "can you name")
SAME_WORDS: Final = ("again", "indeed", "simply", "basically")
OTHER_WORDS: Final = ("instead", "however", "rather", "unlike")
NEGATION: Final = "not"
MARKS: Final = (".", "?", "and", "but")

#: How often a small word hints at the relation of a pair.
HINTED: Final = 0.7
#: How often a pair that differs does so in polarity, not in topic.
POLARITY_DIFFERS: Final = 0.75

Row = tuple[tuple[str, ...], int | float]


def generate(name: SyntheticName, split: str, rows: int, seed: int, wanted: Sequence[str]) -> Table:
    """Rows of a synthetic task, the same for the same arguments; a longer split begins like a shorter one.

    Args:
        name: the shape: columns are ``sentence``, ``question1 question2`` or ``sentence1 sentence2``,
            and ``label``, an int or float.
        split: splits are independent streams.
        wanted: columns to return.

    Raises:
        DataError: there is no such column.
    """
    source = f"synthetic {name} (generated, not real data), split {split}"
    draw, names = GENERATORS[name]
    require_columns(wanted, [*names, "label"], source)
    stream = derive_random(seed, "synthetic", name, split)
    drawn = [draw(stream) for _ in range(rows)]
    columns: dict[str, list[object]] = {column: [texts[at] for texts, _ in drawn] for at, column in enumerate(names)}
    columns["label"] = [label for _, label in drawn]
    return Table({column: columns[column] for column in wanted}, source)


def vocabulary() -> list[str]:
    """Every token that the generators can emit, sorted; texts are lower case, tokens separated by blanks."""
    nouns = [word for topic in TOPICS for synset in topic for word in synset]
    adjectives = [word for synset in (*GOOD, *BAD) for word in synset]
    phrases = [word for phrase in QUESTIONS for word in phrase.split()]
    small = [*SUBJECTS, *VERBS, *DEGREES, *SAME_WORDS, *OTHER_WORDS, NEGATION, *MARKS]
    return sorted({*nouns, *adjectives, *phrases, *small})


def _sentiment(stream: random.Random) -> Row:
    label = stream.randrange(2)
    mixed = stream.random() < 0.15
    signs = [bool(label)] * 2 + [not label] if mixed else [bool(label)] * stream.randint(1, 2)
    stream.shuffle(signs)
    topic = stream.choice(TOPICS)
    clauses = [_clause(stream, stream.choice(topic), sign, negate=stream.random() < 0.05) for sign in signs]
    text = clauses[0]
    for before, sign, clause in zip(signs, signs[1:], clauses[1:], strict=False):
        text += f" {'and' if before == sign else 'but'} {clause}"
    return (f"{text} .",), label


def _clause(stream: random.Random, noun: Synset, good: bool, *, negate: bool) -> str:
    """``the plot is very dull``; negated, it says the same by ``not`` and the opposite adjective."""
    adjective = stream.choice(stream.choice(GOOD if good != negate else BAD))
    how = [NEGATION] if negate else [stream.choice(DEGREES)] if stream.random() < 0.4 else []
    words = [stream.choice(SUBJECTS), stream.choice(noun), stream.choice(VERBS), *how, adjective]
    return " ".join(words)


def _duplicates(stream: random.Random) -> Row:
    duplicate = stream.random() < 0.5
    topic = stream.choice(TOPICS)
    noun = stream.choice(topic)
    good = stream.random() < 0.5
    if duplicate:
        other_noun, other_good = noun, good
    elif stream.random() < POLARITY_DIFFERS:
        other_noun, other_good = noun, not good
    else:
        other_noun, other_good = stream.choice(_another(stream, topic)), good
    hint = _hint(stream, same=duplicate)
    return (_question(stream, noun, good, ""), _question(stream, other_noun, other_good, hint)), int(duplicate)


def _question(stream: random.Random, noun: Synset, good: bool, hint: str) -> str:
    adjective = stream.choice(stream.choice(GOOD if good else BAD))
    words = [hint, stream.choice(QUESTIONS), stream.choice(SUBJECTS[:3]), adjective, stream.choice(noun), "?"]
    return " ".join(word for word in words if word)


def _similarity(stream: random.Random) -> Row:
    topic = stream.choice(TOPICS)
    first = stream.sample(topic, 2)
    shared = stream.randrange(3)
    others = stream.sample(_another(stream, topic), 2)
    second = first[:shared] + others[shared:]
    good = stream.random() < 0.5
    agree = stream.random() < 0.5
    closeness = 0.6 * agree + 0.2 * shared
    score = round(min(max(5 * closeness + stream.gauss(0, 0.3), 0.0), 5.0), 2)
    hint = _hint(stream, same=agree)
    other_good = good == agree
    return (_two(stream, first, good, ""), _two(stream, second, other_good, hint)), score


def _two(stream: random.Random, nouns: Sequence[Synset], good: bool, hint: str) -> str:
    """A sentence about two nouns with one polarity."""
    clauses = [_clause(stream, noun, good, negate=False) for noun in nouns]
    return " ".join(word for word in (hint, clauses[0], "and", clauses[1], ".") if word)


def _another(stream: random.Random, topic: tuple[Synset, ...]) -> tuple[Synset, ...]:
    return stream.choice([other for other in TOPICS if other is not topic])


def _hint(stream: random.Random, *, same: bool) -> str:
    return stream.choice(SAME_WORDS if same else OTHER_WORDS) if stream.random() < HINTED else ""


GENERATORS: Final[dict[SyntheticName, tuple[Callable[[random.Random], Row], tuple[str, ...]]]] = {
    "sst2": (_sentiment, ("sentence",)),
    "qqp": (_duplicates, ("question1", "question2")),
    "stsb": (_similarity, ("sentence1", "sentence2")),
}
