"""The course of a run: the plan of each round, which version is the best, and when it is time to stop.

**Version v is stored with the plan of round v + 1**, for which it is the start: whatever process goes on from the
version finds in its file the plan that the round is to be trained under. The plan of round r follows from the schedule,
from r, and from the tasks that had stopped by the judgement of version r - 2, which is the newest that every process
knows when version r - 1 is made: a version is judged when the round that starts from it closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.metrics import Evaluation
from common.plan import SharingPlan
from server.history import History
from server.outlook import Outlook
from server.selection import LOSS, Judgements, Selection
from server.unfreezing import Schedule, plan_of_round, trained_tasks


class Course:
    """Where a run goes. Called from the event loop; reading is safe from any thread.

    Args:
        schedule: what is trained when.
        selection: how versions are compared, and when tasks stop.
        plans: version to the plan it is stored with.
        judged: what is known of versions that were judged before.
    """

    def __init__(
        self,
        schedule: Schedule,
        selection: Selection,
        plans: Mapping[int, SharingPlan] | None = None,
        judged: Judgements | None = None,
    ) -> None:
        self._schedule = schedule
        self._selection = selection
        self._plans = dict(plans or {})
        self._judged: Judgements = dict(judged or {})

    @classmethod
    def restored(cls, schedule: Schedule, selection: Selection, history: History) -> Course:
        """The course of a run that goes on from what its history holds."""
        plans = {row["digest"]: SharingPlan.from_dict(row["plan"]) for row in history.plans()}
        by_version = {row["version"]: plans[row["plan"]] for row in history.commits() if row["plan"] in plans}
        return cls(schedule, selection, by_version, history.judgements())

    # --- plans

    def plan_to_start_with(self, plan: SharingPlan) -> SharingPlan:
        """The plan that version 0 is stored with: that of round 1."""
        return plan_of_round(plan, self._schedule, 1)

    def plan_of_next(self, version: int, plan: SharingPlan) -> SharingPlan:
        """The plan that the version after `version` is to be stored with.

        Args:
            version: judged already, if it is judged at all.
            plan: the plan it is stored with.
        """
        stopping = self._selection.stopping
        return plan_of_round(
            plan,
            self._schedule,
            version + 2,
            frozenset(self._selection.stopped(self._judged, version)),
            shared_goes_on=stopping is not None and stopping.stop_run == "never",
        )

    def made(self, version: int, plan: SharingPlan) -> None:
        """A version with this plan exists."""
        self._plans = {**self._plans, version: plan}

    def plan_of_round(self, round_id: int) -> SharingPlan | None:
        """The plan that a round was or is trained under; None when nobody knows any more."""
        return self._plans.get(round_id - 1)

    # --- judgements

    def judge(self, version: int, results: Mapping[str, Evaluation]) -> tuple[dict[str, dict[str, float]], list[str]]:
        """No further evaluation of a version is awaited.

        Returns:
            what is to be kept in the history, and what to tell of tasks that have stopped by it.
        """
        before = self._selection.stopped(self._judged, version)
        row = {task: {**result.metrics, LOSS: result.loss} for task, result in sorted(results.items())}
        self._judged = {**self._judged, version: row}
        after = self._selection.stopped(self._judged, version)
        told = [
            f"{task} has stopped: version {version} is one more without a better {self._selection.watched[task]}"
            for task in sorted(after.keys() - before.keys())
        ]
        return row, told

    def best(self) -> dict[str, dict[str, Any]]:
        """See `Selection.best`."""
        return self._selection.best(self._judged)

    @property
    def best_versions(self) -> frozenset[int]:
        """The versions whose files are to stay."""
        return frozenset(found["version"] for found in self.best().values())

    def stopped(self, version: int) -> dict[str, int]:
        """The tasks that have stopped by the time that a version is made, with the version that was one too many."""
        return self._selection.stopped(self._judged, version - 1)

    def outlook(self, version: int, plan: SharingPlan) -> Outlook:
        """What can be done from a version on, which is stored with this plan."""
        trained, stopped = trained_tasks(plan), self.stopped(version)
        end = self._selection.end(stopped)
        if self._selection.stopping is not None and self._selection.stopping.when_stopped == "leave":
            trained -= stopped.keys()
        if not end and not trained:
            why = f"{', '.join(sorted(stopped))} stopped, the rest is frozen" if stopped else "everything is frozen"
            end = f"nothing is left to train in round {version + 1}: {why}"
        return Outlook(trained, end)
