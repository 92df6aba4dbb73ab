"""One round as a pure state machine: who is asked, who has answered, when it is over.

A round knows nothing of sockets, clocks or tensors. A client that is asked holds a **seat** until it
answers, declines, or its connection has been gone for longer than the grace period.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Examples = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Quorum:
    """What a round needs to count: a share of those asked, and a number of updates per task asked."""

    share: float = 0.5
    per_task: int = 0


@dataclass
class Round:
    """The state of one round; `round_id` makes version `round_id` out of version `round_id - 1`.

    Attributes:
        trainers: clients asked to train, with their tasks.
        evaluators: clients asked to evaluate the version they receive.
        answered: examples per task of each accepted update.
        quorum: what the round needs to count.
        wanted: so many updates suffice, if they meet the quorum of each task; None waits for everybody.
        stragglers: clients still at work on an older round whose late update counts here, with their tasks.
        staleness: of accepted late updates, the versions made since the one they start from.
    """

    round_id: int
    trainers: Mapping[str, frozenset[str]]
    evaluators: frozenset[str]
    answered: dict[str, Examples] = field(default_factory=dict)
    quorum: Quorum = field(default_factory=Quorum)
    wanted: int | None = None
    stragglers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    staleness: dict[str, int] = field(default_factory=dict)
    _training: set[str] = field(init=False)
    _late: set[str] = field(init=False)
    _evaluating: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._training = set(self.trainers) - set(self.answered)
        self._late = set(self.stragglers) - set(self.answered) - self._training
        self._evaluating = set(self.evaluators)

    @property
    def version(self) -> int:
        """The model version that clients start from and evaluate."""
        return self.round_id - 1

    @property
    def seated(self) -> frozenset[str]:
        """Clients from which something is still expected."""
        return frozenset(self._training | self._late | self._evaluating)

    @property
    def training(self) -> frozenset[str]:
        """Clients asked to train in this round that have not answered."""
        return frozenset(self._training)

    def expects_update(self, client_id: str) -> bool:
        """Whether this client was asked to train, in this round, and has not answered yet."""
        return client_id in self._training

    def expects_late_update(self, client_id: str) -> bool:
        """Whether this client's update of an older round would count here."""
        return client_id in self._late

    def expects_evaluation(self, client_id: str) -> bool:
        """Whether this client was asked to evaluate and has not reported yet."""
        return client_id in self._evaluating

    def accept_update(self, client_id: str, examples: Examples, staleness: int = 0) -> None:
        """Count an update; a client is counted once."""
        if client_id not in self._training and client_id not in self._late:
            raise ValueError(f"round {self.round_id} expects no update of {client_id!r}")
        self._training.discard(client_id)
        self._late.discard(client_id)
        self.answered[client_id] = dict(examples)
        if staleness:
            self.staleness[client_id] = staleness

    def withdraw(self, client_id: str) -> None:
        """An update that was accepted does not count after all."""
        self.answered.pop(client_id, None)
        self.staleness.pop(client_id, None)

    def accept_evaluation(self, client_id: str) -> None:
        """Note that a client has reported its evaluation."""
        self._evaluating.discard(client_id)

    def begin_anew(self, client_id: str, tasks: frozenset[str]) -> None:
        """A straggler has come back without its work: it trains in this round instead."""
        self._late.discard(client_id)
        self.trainers = {**self.trainers, client_id: tasks}
        self._training.add(client_id)

    def give_up(self, client_id: str) -> None:
        """Expect nothing more of a client: it declined, or is gone for good."""
        self._training.discard(client_id)
        self._late.discard(client_id)
        self._evaluating.discard(client_id)

    @property
    def complete(self) -> bool:
        """Nobody is left to wait for, or enough updates have come."""
        return not self.seated or (
            self.wanted is not None and len(self.answered) >= self.wanted and self._every_task_has_its_quorum()
        )

    @property
    def has_quorum(self) -> bool:
        """Whether enough updates came, in all and of every task that was asked."""
        asked = len(self.trainers.keys() | self.stragglers.keys())
        if not asked:
            return False
        needed = asked if self.wanted is None else min(asked, self.wanted)
        # A little less than the share, as 0.07 * 100 is a little more than 7.
        if len(self.answered) < max(1.0, self.quorum.share * needed - 1e-9):
            return False
        return self._every_task_has_its_quorum()

    def tasks_of(self, client_id: str) -> frozenset[str]:
        """The tasks of a client that was asked."""
        return self.trainers[client_id] if client_id in self.trainers else self.stragglers[client_id]

    def _every_task_has_its_quorum(self) -> bool:
        least = self.quorum.per_task
        asked = _all_tasks([*self.trainers.values(), *self.stragglers.values()])
        return not least or all(self._updates_of(task) >= least for task in asked)

    def _updates_of(self, task: str) -> int:
        return sum(1 for client_id in self.answered if task in self.tasks_of(client_id))


def _all_tasks(groups: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*groups)
