"""Two regression tasks over one input whose relatedness is a dial, from a seed alone.

The tasks' weight vectors have a given cosine. With sinusoids of their projections added these are the tasks of MMoE
(Ma et al., KDD 2018, section 3.2); without, the labels are linear and their correlation is known beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.seeds import derive_numpy

#: The paper gives neither frequencies, phases nor scale; with these, which are fixed, its findings show. Random ones
#: differ more from seed to seed than models do from each other.
FREQUENCIES: Final = (0.5, 1.0, 1.5, 2.0)
PHASES: Final = (1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class SyntheticSpec:
    """How two tasks are generated: ``y_k = w_k x + sum_i sin(frequency_i w_k x + phase_i) + noise``.

    Attributes:
        cosine: between the two weight vectors, in [-1, 1]; the paper's "task correlation".
        inputs: d, the number of inputs, at least 2.
        scale: the length of both weight vectors.
        frequencies: of the sinusoids; none: the labels are linear.
        phases: as many.
        noise: the variance of what is added to each label.
        train: rows to train on, and to standardise the labels by.
        validation: rows to choose settings by.
        test: rows to report.

    Raises:
        ConfigError: a value out of its range.
    """

    cosine: float
    inputs: int = 100
    scale: float = 1.0
    frequencies: tuple[float, ...] = FREQUENCIES
    phases: tuple[float, ...] = PHASES
    noise: float = 0.01
    train: int = 10_000
    validation: int = 1_000
    test: int = 10_000

    def __post_init__(self) -> None:
        if not -1 <= self.cosine <= 1:
            raise ConfigError(f"synthetic tasks: the cosine of the weight vectors is {self.cosine}; allowed: -1 to 1")
        if self.inputs < 2:
            raise ConfigError(f"synthetic tasks: {self.inputs} inputs; two weight vectors need at least 2")
        if not (self.scale > 0 and self.noise >= 0):
            raise ConfigError(f"synthetic tasks: scale {self.scale} must be above 0, noise {self.noise} not below 0")
        if len(self.frequencies) != len(self.phases):
            raise ConfigError(
                f"synthetic tasks: {len(self.frequencies)} frequencies and {len(self.phases)} phases; allowed: as many"
            )
        if min(self.train, self.validation, self.test) < 2:
            raise ConfigError("synthetic tasks: every split needs at least 2 rows")

    @classmethod
    def linear(cls, label_correlation: float, *, scale: float = 1.0, noise: float = 0.01, inputs: int = 100) -> Self:
        """Linear tasks ``y_k = w_k x + noise`` whose labels have this Pearson correlation in expectation.

        Raises:
            ConfigError: the noise alone keeps the labels from being so alike.
        """
        cosine = label_correlation * (1 + noise / scale**2)
        if abs(cosine) > 1:
            most = 1 / (1 + noise / scale**2)
            raise ConfigError(
                f"synthetic tasks: label correlation {label_correlation} can't be had with noise of variance {noise}; "
                f"allowed: {-most:.4f} to {most:.4f}"
            )
        return cls(cosine, inputs=inputs, scale=scale, noise=noise, frequencies=(), phases=())


@dataclass(frozen=True)
class SyntheticRows:
    """Rows of one split; both tasks label the same rows.

    Attributes:
        features: (N, d) float32, standard normal.
        labels: (N, 2) float32, of the two tasks, standardised by the training rows.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticTasks:
    """What `generate` gives.

    Attributes:
        weights: (2, d) float64, the tasks' weight vectors.
        label_correlation: Pearson, of the labels of all rows. Of sinusoids it falls faster than the cosine.
    """

    train: SyntheticRows
    validation: SyntheticRows
    test: SyntheticRows
    weights: NDArray[np.float64]
    label_correlation: float


def generate(spec: SyntheticSpec, seed: int) -> SyntheticTasks:
    """Two tasks, a function of both arguments only.

    Inputs, noise and the plane of the weight vectors depend on the seed but not on the cosine: with one seed, tasks of
    any relatedness share them, so that what differs between them is due to the cosine.
    """
    first, second = _orthonormal(spec.inputs, seed)
    across = math.sqrt(1 - spec.cosine**2)
    weights = spec.scale * np.stack([first, spec.cosine * first + across * second])
    sizes = (spec.train, spec.validation, spec.test)
    features = derive_numpy(seed, "synthetic", "inputs").standard_normal((sum(sizes), spec.inputs), dtype=np.float32)
    noise = derive_numpy(seed, "synthetic", "noise").standard_normal((sum(sizes), 2))
    labels = _signal(features @ weights.T, spec) + math.sqrt(spec.noise) * noise
    known = labels[: spec.train]
    scaled = ((labels - known.mean(axis=0)) / known.std(axis=0)).astype(np.float32)
    correlation = float(np.corrcoef(labels[:, 0], labels[:, 1])[0, 1])
    train, validation, test = (
        SyntheticRows(features[end - size : end], scaled[end - size : end])
        for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)
    )
    return SyntheticTasks(train, validation, test, weights, correlation)


def _orthonormal(inputs: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two random orthogonal vectors of length 1."""
    drawn = derive_numpy(seed, "synthetic", "directions").standard_normal((inputs, 2))
    basis = np.linalg.qr(drawn).Q
    return basis[:, 0], basis[:, 1]


def _signal(projections: NDArray[np.float64], spec: SyntheticSpec) -> NDArray[np.float64]:
    """Labels without noise, of the rows' projections on the weight vectors; both (N, 2)."""
    waves = [np.sin(f * projections + p) for f, p in zip(spec.frequencies, spec.phases, strict=True)]
    return projections + sum(waves, np.zeros_like(projections))
