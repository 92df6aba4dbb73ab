"""What a task's `data:` may say: where the rows come from, which of them, and how several clients share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from common.strict_model import StrictModel

SplitName = Literal["train", "validation", "test"]
FileType = Literal["csv", "tsv", "jsonl", "parquet"]
SyntheticName = Literal["sst2", "qqp", "stsb"]

#: Share of the training rows held out when nothing else is said.
DEFAULT_VALIDATION: Final = 0.1
#: Enough for any real imbalance; far below, all weights underflow to zero.
SMALLEST_ALPHA: Final = 1e-3


class FileFormat(StrictModel):
    """How a file is written; what is left out follows from the file's name."""

    type: FileType | None = None
    """Default: by the suffix, `.csv .tsv .jsonl .parquet`, before an optional `.gz`."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """One character; default `,` for csv and tab for tsv."""
    quoting: Literal["minimal", "none"] | None = None
    """`minimal`: a field may stand in double quotes (default for csv); `none`: quotes are text (default for tsv)."""
    header: bool = True
    """The first line names the columns; when false, `columns` does."""
    columns: tuple[str, ...] = ()
    """Column names in file order, where the file has no header."""
    skip_lines: int = Field(default=0, ge=0)
    """Lines to leave out at the start of the file, before the header."""
    comment: str | None = Field(default=None, min_length=1)
    """Lines that start with this are left out."""
    strip: bool = False
    """Remove blanks around every field."""
    missing: tuple[str, ...] = ()
    """Fields that mean "no value", such as `?`, in label and feature columns (never in text columns)."""
    encoding: str = "utf-8-sig"
    """Text encoding; the default is UTF-8 with or without a byte order mark."""

    @model_validator(mode="after")
    def _header_or_names(self) -> Self:
        if self.header == bool(self.columns):
            raise ValueError("give `columns` exactly when `header` is false")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("`columns` names one column twice")
        return self


class Limits(StrictModel):
    """The most rows of each split to use, of the task as a whole: applied before shards are cut."""

    train: int | None = Field(default=None, ge=1)
    validation: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)
    take: Literal["sample", "head"] = "sample"
    """`sample`: a seeded sample (a smaller limit gives a subset of a larger one's rows); `head`: the first rows."""


class Sharding(StrictModel):
    """How the training rows are divided among clients of one task; validation and test rows always evenly."""

    scheme: Literal["iid", "dirichlet", "column"] = "iid"
    """`iid`: evenly at random; `dirichlet`: by label (regression: by decile of the score); `column`: by a value."""
    alpha: float | None = Field(default=None, ge=SMALLEST_ALPHA, le=1e6)
    """Concentration of `dirichlet`: small gives each client few labels, large approaches `iid`."""
    column: str | None = None
    """For `column`: all rows with the same value here go to one shard."""

    @model_validator(mode="after")
    def _matching_options(self) -> Self:
        if (self.scheme == "dirichlet") != (self.alpha is not None):
            raise ValueError("give `alpha` exactly when `scheme` is dirichlet")
        if (self.scheme == "column") != (self.column is not None):
            raise ValueError("give `column` exactly when `scheme` is column")
        return self


class _Rows(StrictModel):
    """What every source has."""

    limits: Limits = Limits()
    sharding: Sharding = Sharding()
    seed: int | None = None
    """Draw sample, split and shards from this instead of the run's seed: same rows for every `run.seed`."""


def _checked_validation(value: float | str) -> float | str:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a fraction of the training rows must lie between 0 and 1 (or name a file or split)")
    return value


class FilesSource(_Rows):
    """Files; relative paths lie in the client's `--data` folder, or the working directory without one."""

    train: str | None = None
    """Path; left out, every client brings its own with `--data`."""
    validation: float | str = DEFAULT_VALIDATION
    """Path, or the fraction of the training rows to hold out (of the test rows with `validation_from: test`)."""
    validation_from: Literal["train", "test"] = "train"
    """Which rows a fraction is taken of: `test` leaves all training rows for training, and the rest of the test file
    as the test split."""
    test: str | None = None
    format: FileFormat = FileFormat()

    _fraction = field_validator("validation")(_checked_validation)

    @model_validator(mode="after")
    def _no_file_without_train(self) -> Self:
        named = [key for key in ("validation", "test") if isinstance(getattr(self, key), str)]
        if self.train is None and named:
            raise ValueError(
                f"{' and '.join(named)} name files but `train` does not: give it too, or leave all to --data"
            )
        if self.validation_from == "test" and (self.test is None or isinstance(self.validation, str)):
            what = "`validation` names a file" if isinstance(self.validation, str) else "`test` is not given"
            raise ValueError(f"validation_from: test makes a fraction of the test file the validation rows, but {what}")
        return self


class HubSource(_Rows):
    """A dataset that `datasets.load_dataset` finds: a name on the hub, or a folder."""

    hub: str = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    """Name of a split; slices such as `train[:10%]` are allowed."""
    validation: float | str = "validation"
    """Name of a split, or the fraction of the training rows to hold out."""
    test: str | None = None

    _fraction = field_validator("validation")(_checked_validation)


class SyntheticSource(_Rows):
    """Generated text, learnable and deterministic, for demonstrations: no real data."""

    synthetic: SyntheticName
    """Which task's shape it has."""
    train: int = Field(default=2000, ge=1)
    """Rows to generate."""
    validation: int = Field(default=500, ge=1)
    test: int | None = Field(default=None, ge=1)


#: Tags are in brackets so that error messages can leave them out of the key path.
SOURCES: Final[Mapping[str, type[_Rows]]] = {"<files>": FilesSource, "<hub>": HubSource, "<synthetic>": SyntheticSource}


def _tag(value: object) -> str:
    if isinstance(value, _Rows):
        return next(tag for tag, model in SOURCES.items() if isinstance(value, model))
    keys = value if isinstance(value, Mapping) else {}
    return next((tag for tag in ("<hub>", "<synthetic>") if tag.strip("<>") in keys), "<files>")


DataSource = Annotated[
    Annotated[FilesSource, Tag("<files>")]
    | Annotated[HubSource, Tag("<hub>")]
    | Annotated[SyntheticSource, Tag("<synthetic>")],
    Discriminator(_tag),
]
