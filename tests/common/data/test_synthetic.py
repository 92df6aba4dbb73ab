from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest

from common.data import synthetic
from common.data.config import SyntheticName
from common.data.synthetic import generate
from common.errors import DataError

NAMES: tuple[SyntheticName, ...] = get_args(SyntheticName)


def _columns(name: SyntheticName) -> tuple[str, ...]:
    return synthetic.GENERATORS[name][1]


def _rows(name: SyntheticName, split: str = "train", rows: int = 1000, seed: int = 1) -> list[tuple[object, ...]]:
    table = generate(name, split, rows, seed, [*_columns(name), "label"])
    return list(zip(*table.columns.values(), strict=True))


def _linear_features(texts: Sequence[str]) -> np.ndarray:
    index = {word: at for at, word in enumerate(synthetic.vocabulary())}
    features = np.zeros((len(texts), len(index)))
    for row, text in enumerate(texts):
        for word in text.split():
            features[row, index[word]] += 1
    return features


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_seed_and_split_alone(name: SyntheticName) -> None:
    assert _rows(name) == _rows(name)
    assert _rows(name, rows=100) == _rows(name)[:100]
    assert _rows(name) != _rows(name, seed=2)
    assert _rows(name) != _rows(name, split="validation")


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_in_the_vocabulary(name: SyntheticName) -> None:
    known = set(synthetic.vocabulary())
    assert len(known) == len(synthetic.vocabulary())
    assert {word for *texts, _ in _rows(name) for text in texts for word in str(text).split(" ")} <= known


@pytest.mark.parametrize("name", NAMES)
def test_no_single_answer_is_good(name: SyntheticName) -> None:
    labels = np.array([row[-1] for row in _rows(name)], dtype=float)
    if name == "stsb":
        assert labels.min() >= 0
        assert labels.max() <= 5
        assert labels.std() > 1
    else:
        assert abs(labels.mean() - 0.5) < 0.06


def test_no_synonym_belongs_to_two_synsets() -> None:
    words = [word for synset in (*synthetic.GOOD, *synthetic.BAD) for word in synset]
    words += [word for topic in synthetic.TOPICS for synset in topic for word in synset]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(("name", "wanted"), [("sst2", 0.85), ("qqp", 0.75), ("stsb", 0.5)])
def test_even_a_linear_model_of_words_learns_the_task(name: SyntheticName, wanted: float) -> None:
    # What a bag of words can learn, a small encoder learns in a few rounds of the demonstration.
    def data(split: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
        table = _rows(name, split, rows)
        texts = [" ".join(map(str, row[:-1])) for row in table]
        return _linear_features(texts), np.array([row[-1] for row in table], dtype=float)

    features, labels = data("train", 2000)
    weights = np.linalg.lstsq(np.c_[features, np.ones(len(features))], labels, rcond=1e-6)[0]
    held_out, truth = data("validation", 500)
    predicted = np.c_[held_out, np.ones(len(held_out))] @ weights
    score = np.corrcoef(predicted, truth)[0, 1] if name == "stsb" else ((predicted > 0.5) == truth).mean()
    assert score > wanted


def test_the_source_says_synthetic_and_a_wrong_column_is_named() -> None:
    assert "synthetic sst2 (generated, not real data)" in generate("sst2", "train", 1, 0, ["label"]).source
    with pytest.raises(DataError, match=r"synthetic sst2 .*no column 'text'; the columns are 'sentence', 'label'"):
        generate("sst2", "train", 1, 0, ["text"])
