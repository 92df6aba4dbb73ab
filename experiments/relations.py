"""What MMoE's experiment found, as relations that measured losses bear out, contradict or leave open.

Ma et al. (KDD 2018, section 4.1): as tasks grow less alike, multi-gate experts lose least and one gate for all tasks
loses more; both are better than a shared bottom, whose results vary most from run to run. Every relation is estimated
over seeds; tasks of one seed share inputs and noise whatever their correlation, so seeds are compared with themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.seeds import derive_numpy
from experiments.intervals import CONFIDENCE, t_interval

Verdict = Literal["yes", "no", "unclear"]
#: How far apart, relatively, losses are that count as equal.
MARGIN: Final = 0.1
#: Tasks are unlike up to this cosine of their weights, in either direction. Inputs are symmetric about 0, so that a
#: unit along w serves a task along -w as well: for a network, tasks of cosine p and -p are as much alike.
UNLIKE: Final = 0.1
RESAMPLES: Final = 4_000
#: Of fewer seeds a bootstrap has next to no different resamples, and its interval means nothing.
BOOTSTRAP_SEEDS: Final = 4


@dataclass(frozen=True)
class Relation:
    """A finding and what the measured losses say of it.

    Attributes:
        name: for programs.
        text: for people.
        estimate: over the seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        holds: yes where the whole interval agrees with the finding, no where all of it contradicts.
        seeds: how many.
    """

    name: str
    text: str
    estimate: float
    low: float
    high: float
    holds: Verdict
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `correlation.json` holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Losses:
    """Losses of a full grid.

    Attributes:
        correlations: (V,), rising.
        of: family to (V, S) for S seeds.
    """

    correlations: NDArray[np.float64]
    of: Mapping[str, NDArray[np.float64]]

    @classmethod
    def from_cells(cls, cells: Iterable[Mapping[str, Any]], loss: str = "test_loss") -> Losses | None:
        """Of the correlations that every family has, and the seeds that are complete for them; None where there are
        fewer than two seeds.

        Args:
            cells: with family, correlation, seed, and the loss.
            loss: its key.
        """
        found = {(cell["family"], cell["correlation"], cell["seed"]): float(cell[loss]) for cell in cells}
        families = sorted({family for family, _, _ in found})
        measured = [{correlation for of, correlation, _ in found if of == family} for family in families]
        correlations = sorted(set.intersection(*measured)) if measured else []
        seeds = [
            seed
            for seed in sorted({seed for _, _, seed in found})
            if all((family, correlation, seed) in found for family in families for correlation in correlations)
        ]
        if len(seeds) < 2 or not correlations:
            return None
        of = {f: np.array([[found[f, c, s] for s in seeds] for c in correlations]) for f in families}
        return cls(np.array(correlations), of)


def relations(losses: Losses) -> list[Relation]:
    """The paper's findings about the families that were measured.

    Those that compare tasks of different relatedness need the highest correlation to be above `UNLIKE` and others
    within it, over which the mean is taken.
    """
    found = [*_against_shared_bottom(losses), *_spread(losses)]
    unlike = np.abs(losses.correlations) <= UNLIKE
    if losses.correlations[-1] > UNLIKE and unlike.any():
        found = [*_along_the_correlation(losses, unlike), *found]
    return found


def table(found: Sequence[Relation]) -> str:
    """Aligned lines for people."""
    rows = [("relation", "estimate", f"{CONFIDENCE:.0%} interval", "holds")]
    rows += [(r.text, f"{r.estimate:+.3f}", f"{r.low:+.3f} to {r.high:+.3f}", r.holds) for r in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def above(low: float, high: float, bound: float) -> Verdict:
    """Whether an interval lies above a bound."""
    return "yes" if low > bound else "no" if high < bound else "unclear"


def about_zero(low: float, high: float) -> Verdict:
    """Whether an interval lies within the margin of 0, or all outside it."""
    if low > -MARGIN and high < MARGIN:
        return "yes"
    return "no" if low > MARGIN or high < -MARGIN else "unclear"


def _over_seeds(
    name: str, text: str, values: NDArray[np.float64], verdict: Callable[[float, float], Verdict]
) -> Relation:
    found = t_interval(values.tolist())
    return Relation(name, text, found.mean, found.low, found.high, verdict(found.low, found.high), found.count)


def _above_zero(low: float, high: float) -> Verdict:
    return above(low, high, 0)


def _along_the_correlation(losses: Losses, unlike: NDArray[np.bool_]) -> list[Relation]:
    alike = {family: values[-1] for family, values in losses.of.items()}
    apart = {family: values[unlike].mean(axis=0) for family, values in losses.of.items()}
    change = {family: apart[family] / alike[family] - 1 for family in losses.of}
    p = f"{losses.correlations[-1]:g}"
    found = []
    if "mmoe" in change:
        text = f"MMoE is flat: loss at |p| <= {UNLIKE} relative to p = {p}, within {MARGIN:.0%}"
        found.append(_over_seeds("mmoe_flat", text, change["mmoe"], about_zero))
    for family, words in (("omoe", "OMoE"), ("shared_bottom", "Shared bottom")):
        if family in change:
            text = f"{words} is worse at |p| <= {UNLIKE} than at p = {p}, relative"
            found.append(_over_seeds(f"{family}_worse_when_unlike", text, change[family], _above_zero))
    if {"mmoe", "omoe"} <= change.keys():
        text = f"OMoE is as good as MMoE at p = {p}: relative difference, within {MARGIN:.0%}"
        difference = alike["omoe"] / alike["mmoe"] - 1
        found.append(_over_seeds("omoe_as_mmoe_when_alike", text, difference, about_zero))
        text = f"OMoE is worse than MMoE at |p| <= {UNLIKE}, relative"
        difference = apart["omoe"] / apart["mmoe"] - 1
        found.append(_over_seeds("omoe_worse_than_mmoe_when_unlike", text, difference, _above_zero))
        text = f"OMoE loses more than MMoE from p = {p} to |p| <= {UNLIKE}, relative"
        found.append(_over_seeds("omoe_loses_more", text, change["omoe"] - change["mmoe"], _above_zero))
    return found


def _against_shared_bottom(losses: Losses) -> list[Relation]:
    if "shared_bottom" not in losses.of:
        return []
    bottom = losses.of["shared_bottom"].mean(axis=0)
    return [
        _over_seeds(
            f"{family}_better_than_shared_bottom",
            f"{words} is better than shared bottom: the latter's excess over all p, relative",
            bottom / losses.of[family].mean(axis=0) - 1,
            _above_zero,
        )
        for family, words in (("mmoe", "MMoE"), ("omoe", "OMoE"))
        if family in losses.of
    ]


def _spread(losses: Losses) -> list[Relation]:
    """Shared bottom's standard deviation over seeds against the largest of the others', by a bootstrap over seeds."""
    others = [family for family in losses.of if family != "shared_bottom"]
    if "shared_bottom" not in losses.of or not others:
        return []
    seeds = losses.of["shared_bottom"].shape[1]
    if seeds < BOOTSTRAP_SEEDS:
        return []
    drawn = derive_numpy(0, "relations", "spread").integers(seeds, size=(RESAMPLES, seeds))

    def ratio(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        spread = {f: np.sqrt(v[:, chosen].var(axis=-1, ddof=1).mean(axis=0)) for f, v in losses.of.items()}
        largest = np.stack([spread[family] for family in others]).max(axis=0)
        # A resample of one seed over and over has no spread at all, and says nothing.
        unknown = np.full(len(chosen), np.nan)
        found: NDArray[np.float64] = np.divide(spread["shared_bottom"], largest, out=unknown, where=largest > 0)
        return found

    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(ratio(drawn), [tail, 1 - tail])
    estimate = float(ratio(np.arange(seeds)[None])[0])
    text = "Shared bottom varies most from seed to seed: its deviation over the largest of the others'"
    verdict = above(low, high, 1)
    return [Relation("shared_bottom_spread", text, estimate, float(low), float(high), verdict, seeds)]
