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
    """

    round_id: int
    trainers: Mapping[str, frozenset[str]]
    evaluators: frozenset[str]
    answered: dict[str, Examples] = field(default_factory=dict)
    _training: set[str] = field(init=False)
    _evaluating: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._training = set(self.trainers) - set(self.answered)
        self._evaluating = set(self.evaluators)

    @property
    def version(self) -> int:
        """The model version that clients start from and evaluate."""
        return self.round_id - 1

    @property
    def seated(self) -> frozenset[str]:
        """Clients from which something is still expected."""
        return frozenset(self._training | self._evaluating)

    def expects_update(self, client_id: str) -> bool:
        """Whether this client was asked to train and has not answered yet."""
        return client_id in self._training

    def expects_evaluation(self, client_id: str) -> bool:
        """Whether this client was asked to evaluate and has not reported yet."""
        return client_id in self._evaluating

    def accept_update(self, client_id: str, examples: Examples) -> None:
        """Count an update; a client is counted once."""
        if client_id not in self._training:
            raise ValueError(f"round {self.round_id} expects no update of {client_id!r}")
        self._training.discard(client_id)
        self.answered[client_id] = dict(examples)

    def accept_evaluation(self, client_id: str) -> None:
        """Note that a client has reported its evaluation."""
        self._evaluating.discard(client_id)

    def give_up(self, client_id: str) -> None:
        """Expect nothing more of a client: it declined, or is gone for good."""
        self._training.discard(client_id)
        self._evaluating.discard(client_id)

    @property
    def complete(self) -> bool:
        """Nobody is left to wait for."""
        return not self._training and not self._evaluating

    def has_quorum(self, quorum: Quorum) -> bool:
        """Whether enough updates came, in all and of every task that was asked."""
        if not self.trainers:
            return True
        # A little less than the share, as 0.07 * 100 is a little more than 7.
        if len(self.answered) < max(1.0, quorum.share * len(self.trainers) - 1e-9):
            return False
        return all(
            self._updates_of(task) >= quorum.per_task for task in _all_tasks(self.trainers.values()) if quorum.per_task
        )

    def _updates_of(self, task: str) -> int:
        return sum(1 for client_id in self.answered if task in self.trainers[client_id])


def _all_tasks(groups: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*groups)
