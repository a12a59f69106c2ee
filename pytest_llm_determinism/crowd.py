"""A crowd: how many unrelated questions are wanted at a time while samples are asked for, and what they ask.

`neighbours` sends them.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.shapes import ModelCall

if TYPE_CHECKING:
    from pytest_llm_determinism.budget import Budget

DRAWS = 4
"""How often the number of neighbours is drawn anew within the time that one sampled call takes."""

QUICKEST = 0.005
FIRST_GUESS = 0.05
"""Seconds from one draw to the next: at least, and as long as nobody knows how long a call takes."""

SHORTEST_ANSWER = 16
"""Tokens. Some APIs refuse a lower limit."""

UNKNOWN_ANSWER = 64
"""Tokens of the longest answer of a neighbour while there is no sampled answer to go by."""

LONGEST_QUESTION = 300
"""Words."""

TRIES = 3
"""How often in a row neighbours may fail before there is no crowd."""

PAUSE = 0.25
"""Seconds without neighbours after one failed; twice as long after the next, and so on."""

LONGEST_PAUSE = 0.5
"""Seconds after which a neighbour that waits for its turn looks whether it is still wanted."""


def spread(chance: random.Random, low: int, high: int) -> int:
    """A whole number from `low` (1 or more) to `high`, small ones as often as large: 1 as often as 2 and 3 together."""
    return min(high, int(low * ((high + 1) / low) ** chance.random()))


def question(chance: random.Random, words: int) -> str:
    """An everyday question of about so many words, the question itself at least."""
    asked = chance.choice(_QUESTIONS)
    missing = words - len(asked.split())
    told = []
    for sentence in chance.sample(_SENTENCES, len(_SENTENCES)):
        if missing <= 0:
            break
        told.append(sentence.format(number=chance.randint(2, 90), day=chance.choice(_DAYS)))
        missing -= len(sentence.split())
    return " ".join((*told, asked))


@dataclass(slots=True)
class Route:
    """How neighbours fare at one address.

    Attributes:
        answered: whether one got an answer.
        failed: tries that failed since one did; those that were in flight together are one try.
        limited: whether they limit their answers although the application may not do so.
        words: of the longest question.
        failed_at: when the last try failed, and `held_until`, when the next may be made, as `time.monotonic` tells it.
    """

    answered: bool = False
    failed: int = 0
    limited: bool = True
    words: int = LONGEST_QUESTION
    failed_at: float = 0.0
    held_until: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether neighbours are answered, as far as is known."""
        return self.answered and not self.failed


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One unrelated question: the call, how many words it asks in, and when, as `time.monotonic` tells it."""

    call: ModelCall
    words: int
    at: float


@dataclass(frozen=True, slots=True)
class NeighbourCount:
    """Neighbours that went out, those of them that failed, and what became of the first of these."""

    calls: int = 0
    failures: int = 0
    example: str = ""


class Crowd:
    """The neighbours of one experiment. Safe to use from any thread.

    Args:
        most: neighbours in flight at once.
        seed: of their number, questions and lengths.

    Attributes:
        count: what became of them so far.
    """

    def __init__(self, most: int, seed: int, budget: Budget | None) -> None:
        self.count = NeighbourCount()
        self._most = most
        self._budget = budget
        self._random = random.Random(f"neighbours {seed}")
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], Route] = {}
        self._wanted = 0
        self._until = 0.0
        self._in_flight = 0
        self._sampled = 0

    def route(self, call: ModelCall) -> Route:
        with self._lock:
            return self._routes.setdefault((call.family.name, call.url), Route())

    def sampled(self) -> None:
        """A sampled call goes out."""
        with self._lock:
            self._sampled += 1

    def enter(self, route: Route, now: float, seconds: float | None) -> float | None:
        """Take a place for one more neighbour, which then must go out, and `leave` in the end.

        Args:
            now: as `time.monotonic` tells it.
            seconds: that one sampled call takes, if that is known.

        Returns:
            0.0 when the place is taken, else the seconds after which to ask again; None when there will be none.
        """
        with self._lock:
            if now < route.held_until:
                return route.held_until - now
            if now >= self._until:
                self._wanted = spread(self._random, 1, self._most + 1) - 1
                pause = FIRST_GUESS if seconds is None else max(QUICKEST, seconds / DRAWS)
                self._until = now + pause * self._random.uniform(0.5, 1.5)
            if self._in_flight >= self._wanted:
                return self._until - now
            try:
                return self._go_out(now, polite=self._sampled < 2)
            except Refusal:
                return None

    def enter_first(self, route: Route, now: float) -> float:
        """As `enter`, for a neighbour that is wanted whatever the number of the others.

        Raises:
            Refusal: the session may make no call any more.
        """
        with self._lock:
            return max(0.0, route.held_until - now) or self._go_out(now, polite=False)

    def _go_out(self, now: float, polite: bool) -> float:
        """Count a neighbour, or say in how many seconds to try again.

        Args:
            polite: whether a turn is left to whoever waits for it. Sampled calls come first, but for every third turn:
                else there would be no crowd under a slow pace.
        """
        if self._budget is not None:
            seconds = self._budget.take(now, free_for=min(0.05, self._budget.interval / 2) if polite else 0.0)
            if seconds:
                return min(seconds, LONGEST_PAUSE)
        self._sampled = 0
        self.count = replace(self.count, calls=self.count.calls + 1)
        self._in_flight += 1
        return 0.0

    def leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def neighbour(self, route: Route, call: ModelCall, length: int | None) -> Neighbour:
        """A question of any length to the model of a sampled call, whose answers have this length in tokens."""
        with self._lock:
            words, tokens = 1, SHORTEST_ANSWER
            if route.is_open:
                words = spread(self._random, 1, route.words)
                tokens = spread(self._random, SHORTEST_ANSWER, max(2 * SHORTEST_ANSWER, length or UNKNOWN_ANSWER))
            while (asked := question(self._random, words)) in call.canonical:
                words += 1
        made = call.plainly(asked, tokens if route.limited else None)
        assert made is not None
        return Neighbour(made, len(asked.split()), time.monotonic())

    def answered(self, route: Route) -> None:
        with self._lock:
            route.answered = True
            route.failed = 0

    def failed(self, route: Route, neighbour: Neighbour, status: int | None, reason: str) -> None:
        """Count a neighbour that got no answer, and try to do better with the next.

        Args:
            status: of the response, None if there was none.
        """
        with self._lock:
            count = self.count
            self.count = replace(count, failures=count.failures + 1, example=count.example or reason)
            if status in _REFUSED and not route.answered:
                route.limited = not route.limited
            elif status in _REFUSED:
                route.words = max(1, neighbour.words // 2)
            if neighbour.at >= route.failed_at:
                route.failed_at = time.monotonic()
                route.held_until = route.failed_at + PAUSE * 2**route.failed
                route.failed += 1


_REFUSED = (400, 413, 422)
"""Statuses by which a server refuses what was asked: by default the length of the question or that of the answer."""


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_QUESTIONS = (
    "Why is the sky blue?",
    "How do I keep bread fresh for longer?",
    "What can I cook with rice, carrots and two eggs?",
    "Which plants grow well on a balcony without much sun?",
    "How do I explain fractions to a child of eight?",
    "What should I pack for a weekend in the mountains?",
    "How often should I oil the chain of a bicycle?",
    "What is a good way to remember the names of new neighbours?",
    "How do I remove a coffee stain from a wool jumper?",
    "Could you suggest a short walk and a place to eat afterwards?",
    "How long does it take to learn a song on the guitar?",
    "What is the difference between a violin and a viola?",
    "How should I arrange books so that I find them again?",
    "Which games are fun for five people on a rainy afternoon?",
    "How do bees find their way back to the hive?",
    "What would you plan for the first day, and what for the second?",
    "What should I do first, and what can wait until next week?",
    "Can you sum this up in a few words for a friend?",
    "What would be a fitting present that costs little?",
    "How can I tell whether a melon is ripe?",
)

_SENTENCES = (
    "I moved into a small flat with a kitchen that gets the sun in the morning.",
    "On {day} the market sells apples, leeks and a very good goat cheese.",
    "My sister visits me with her {number} year old neighbour and a dog that fears the stairs.",
    "The train leaves at {number} past the hour and is often a little late.",
    "We have {number} chairs, but only one table that is large enough for everybody.",
    "Last {day} it rained so much that the cellar was wet again.",
    "My uncle repairs clocks and says that patience matters more than tools.",
    "There are {number} steps to the door, which is hard with a full basket.",
    "I planted tomatoes and beans in pots, and the snails ate half of them.",
    "The library closes early on {day}, so I read in the park instead.",
    "A friend lent me a tent that was made for {number} nights of rain.",
    "In the evening the street is quiet, and one can hear the river.",
    "The recipe asks for {number} grams of butter, which seems a lot to me.",
    "Our choir meets every {day} and sings songs from many countries.",
    "The old heater makes a noise as if somebody knocked on the wall.",
    "I want to spend less than {number} coins and still have something nice.",
    "My grandmother wrote letters with a pen that leaked on every page.",
    "The baker on the corner has sold the same rolls for {number} years.",
    "On {day} the children play football behind the school until it gets dark.",
    "I learned to swim late, and I still like the shallow end best.",
    "The bus was full, so we walked and found a garden with a fountain.",
    "There is a lamp in the hall that only works when it is cold.",
    "We counted {number} birds on the wire before all of them flew away.",
    "The paint for the door should dry for {number} hours before it rains.",
    "Somebody left an umbrella with a wooden handle at our place on {day}.",
    "My desk stands by the window, where I see the post arrive.",
    "The lake is {number} minutes away by bicycle if the wind is kind.",
    "I have flour, a little sugar, some nuts and a jar of honey.",
    "The neighbours have a piano, and the youngest practises on {day}.",
    "It was so warm in spring that the cherries were ripe in no time.",
    "Our map is old and shows a bridge that is not there any more.",
    "The doctor told me to walk more and to sit up straight.",
    "I keep {number} seeds of every flower in small bags of paper.",
    "The cat sleeps on the warm step and wakes up when the milk comes.",
    "We would like to come back in autumn, when the hills turn red.",
)
