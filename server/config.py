"""The server's configuration: what `python -m server --config FILE` reads.

A client needs no file: the server tells it the specification of its tasks and how to train.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from common.config_file import apply_overrides, read_yaml, validate
from common.errors import ConfigError
from common.families.config import ModelConfig
from common.selectors import check_selector
from common.strict_model import StrictModel
from common.tasks import TaskSpec, load_registry
from common.training import TrainSettings
from common.wire import MAX_CONTROL_BYTES
from server.aggregation.config import AggregationConfig
from server.freezing_config import FreezingConfig
from server.selection import OVERALL, Selection
from server.selection_config import SelectionConfig
from server.strategy import Correction
from server.training_settings import TrainingOverride, check_overrides

#: Bytes of a chunk's frame beside its payload: header, names, checksum.
FRAME_OVERHEAD: Final = 4096


class RunConfig(StrictModel):
    """What is run, and where it is kept."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}$")
    """The run's id; made from the date and time when left out."""
    dir: Path | None = None
    """The run directory (also ``--run-dir``); ``runs/<run-id>`` under the working directory when left out."""
    rounds: int = Field(default=10, ge=1, le=2**31 - 2)
    """How many versions of the model to train."""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """Root of every random choice: initial heads, cohorts, batches, dropout."""
    keep_versions: int = Field(default=3, ge=1)
    """How many of the newest committed versions stay on disk. The first, version 0, and the best ones (`selection`)
    stay too and are not counted."""
    fsync: bool = True
    """Wait until the disk has what an acknowledgement promises. Off, an acknowledged update still survives the death
    of the process at any instant, but not that of the machine: for simulations and benchmarks."""


class LimitsConfig(StrictModel):
    """Bounds on what a peer may make the server hold or wait for."""

    handshake_s: float = Field(default=10.0, gt=0)
    """Seconds from the opening of a connection to a valid hello, or to the end of a request."""
    heartbeat_s: float = Field(default=1.0, ge=0.05)
    """Seconds of quiet after which either end says that it is alive."""
    silence_s: float = Field(default=4.5, gt=0)
    """Seconds without a sign of life after which a peer counts as dead."""
    chunk_bytes: int = Field(default=1 << 20, ge=4096, le=16 << 20, multiple_of=8)
    """Payload bytes in one frame of a tensor transfer."""
    control_bytes: int = Field(default=MAX_CONTROL_BYTES, ge=65536, le=MAX_CONTROL_BYTES)
    """Largest frame taken that is no chunk (the list of tensors of a large model is the longest)."""
    send_s: float = Field(default=60.0, gt=0)
    """Seconds that a peer has to take a frame (or a piece of an answer) before its connection is cut."""
    connections: int = Field(default=1024, ge=1)
    """Most clients connected at a time; more are refused by name (busy)."""
    handshakes: int = Field(default=256, ge=1)
    """Most connections at a time that have not said hello yet; beyond it the oldest of them is closed."""
    requests: int = Field(default=128, ge=1)
    """Most connections of the REST API at a time, event streams among them; beyond it the oldest is closed."""
    inflight_bytes: int = Field(default=512 << 20, ge=1 << 20)
    """Memory for frames on their way, half of it for those that come and half for those that go; what finds no room
    waits. A connection holds at most two frames that come and one that goes."""
    failed_handshakes_per_minute: int = Field(default=30, ge=1)
    """How often one address (of IPv6 one /64) may fail to get in, by a refused hello or a wrong token, before it is
    answered with HTTP 429. Behind a reverse proxy all clients have one address: set it higher there."""
    updates_per_round: int = Field(default=8, ge=1)
    """How many updates a client may announce in a round; what a broken connection cut off does not count."""

    @property
    def frame_bytes(self) -> int:
        """The longest frame of an admitted client."""
        return max(self.control_bytes, self.chunk_bytes + FRAME_OVERHEAD)

    @model_validator(mode="after")
    def _frames_fit_the_budget(self) -> Self:
        if self.inflight_bytes < 2 * self.frame_bytes:
            raise ValueError(
                f"inflight_bytes ({self.inflight_bytes}) must be at least {2 * self.frame_bytes}, "
                "twice the longest frame (control_bytes or chunk_bytes)"
            )
        return self

    @model_validator(mode="after")
    def _silence_outlasts_heartbeats(self) -> Self:
        if self.silence_s < 2 * self.heartbeat_s:
            raise ValueError(f"silence_s ({self.silence_s}) must be at least twice heartbeat_s ({self.heartbeat_s})")
        return self


class TlsConfig(StrictModel):
    """Files of the server's certificate, PEM; relative paths start at the configuration's folder."""

    cert: Path
    """The server's certificate, followed by the intermediate ones if there are any (also ``--tls-cert``)."""
    key: Path
    """Its private key, not encrypted (also ``--tls-key``)."""
    client_ca: Path | None = None
    """Certificates of the authorities that sign client certificates (also ``--tls-client-ca``). With it TLS is mutual:
    nobody connects without a certificate, whose common name or a DNS name of which is the client id."""


class AuthConfig(StrictModel):
    """Who may take part."""

    tokens: Path | None = None
    """The file that ``python -m server tokens`` keeps, relative to the configuration's folder; left out:
    ``tokens.json`` in the run directory. Where it exists, nobody takes part without a token."""


class ServerConfig(StrictModel):
    """Where the server listens, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on. Off loopback the server starts only with tokens, mutual TLS or `allow_anonymous`."""
    port: int = Field(default=8771, ge=0, le=65535)
    """TCP port; 0 takes any free one (the ready line says which)."""
    allow_anonymous: bool = False
    """Start off loopback with neither tokens nor mutual TLS: anybody who reaches the port may take part (also
    ``--allow-anonymous``). Where there are tokens or mutual TLS it changes nothing."""
    tls: TlsConfig | None = None
    """Encrypt, and prove to clients that this is the server; left out: plain HTTP and WebSocket."""
    auth: AuthConfig = AuthConfig()
    duplicate_client: Literal["refuse", "take_over"] = "refuse"
    """What becomes of a second client with the id of a connected one: refused, or it takes the place of the older."""
    limits: LimitsConfig = LimitsConfig()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def located(self, folder: Path) -> ServerConfig:
        """The same with relative paths of files resolved against a folder: a run is resumed from other places."""
        files = {
            name: None if path is None else folder / path
            for name, path in (self.tls.model_dump() if self.tls else {}).items()
        }
        tokens = self.auth.tokens
        return self.model_copy(
            update={
                "tls": TlsConfig.model_validate(files) if files else None,
                "auth": AuthConfig(tokens=None if tokens is None else folder / tokens),
            }
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address, without brackets, means this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CohortConfig(StrictModel):
    """Which connected clients are asked in a round."""

    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the connected clients, rounded up."""
    count: int | None = Field(default=None, ge=1)
    """Number of clients, or all when fewer are connected."""
    over_selection: float = Field(default=0.0, ge=0, le=10)
    """Share of further clients to ask beyond fraction or count (0.3: thirteen for ten). The round closes when as many
    updates as wanted have come; the slowest are left behind. Which those are depends on timing, so two runs differ."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.fraction is not None and self.count is not None:
            raise ValueError("give fraction or count, not both (neither: all connected clients)")
        if self.over_selection and self.fraction is None and self.count is None:
            raise ValueError("over_selection needs fraction or count: without them all connected clients are asked")
        return self


class BufferConfig(StrictModel):
    """Asynchronous rounds (`federation.late_updates: async`), as in FedBuff (Nguyen et al. 2021, arXiv 2106.06639)."""

    size: int = Field(default=10, ge=1)
    """A version is made when so many updates are there, or when nobody is left to wait for."""
    max_staleness: int = Field(default=10, ge=1)
    """An update may start from a version that is at most this many versions old; older work is called off."""
    staleness_exponent: float = Field(default=0.5, ge=0)
    """A late update weighs ``1 / (1 + versions late) ** exponent``; 0.5 is FedBuff's choice, 0 weighs all alike."""


class ScreeningConfig(StrictModel):
    """Which updates count although nothing is wrong with their form, and what becomes of clients that send bad ones."""

    max_norm_ratio: float | None = Field(default=None, gt=1)
    """Refuse updates whose norm is beyond this multiple of the cohort's median norm (from three updates on); left out:
    no look at norms."""
    quarantine_after: int = Field(default=3, ge=0)
    """Rounds with a bad update (of wrong form, not finite, an outlier) that put a client in quarantine; 0: never."""
    quarantine_rounds: int = Field(default=10, ge=1)
    """How many rounds a client in quarantine is not asked; `python -m server release` ends it earlier."""


class FederationConfig(StrictModel):
    """How clients take part and how their updates are weighed."""

    mode: Literal["mtl", "per_task"] = "mtl"
    """mtl: one encoder for all tasks, a head per task. per_task: a whole model per task, no transfer."""
    resident: list[Annotated[str, AfterValidator(check_selector)]] = Field(default=[], max_length=64)
    """What each client keeps to itself: selectors of parameters, such as norms (FedBN, Li et al. 2021, arXiv
    2102.07623), heads (FedPer) or everything. These slots are sent once, as first values, and never come back."""
    correction: Correction = "none"
    """How local training that goes far, or unevenly far, is put right. scaffold: control variates (Karimireddy et al.
    2020, arXiv 1910.06378); needs `training.optimizer: sgd` without momentum, doubles what travels, and works best
    when all clients take part. fednova: each client counts by its move per local step (Wang et al. 2020, arXiv
    2007.07481), as it reports them."""
    min_clients: int = Field(default=1, ge=1)
    """A round starts only with at least this many clients connected."""
    min_clients_per_task: int = Field(default=0, ge=0)
    """... and at least this many for every configured task."""
    cohort: CohortConfig = CohortConfig()
    task_weights: Literal["uniform", "examples", "sqrt_examples"] | dict[str, float] = "uniform"
    """Weight of a task in a shared slot: equal, by training examples of the round, by their square
    root, or given per task. Normalised over the tasks present in the round."""
    task_step: Literal["mean", "sum"] = "mean"
    """How far a slot that several tasks share moves: the weighted mean of the tasks' moves, or their sum,
    which is as far as one machine that trains the tasks in turn would go on the same examples. The sum learns
    faster per example; the mean is the safer choice with long rounds, many tasks or tasks that conflict."""
    expert_weights: Literal["routing", "examples"] = "routing"
    """Weight of a client in an expert (slots of groups ``expert.*``). routing: by the mass that its gates gave the
    expert over the examples of the round, tasks first as in `task_weights`; an expert that no gate gave anything keeps
    its value, and an update without reports of its gates is refused. examples: as in every other slot."""
    aggregation: AggregationConfig = AggregationConfig()
    round_deadline_s: float | None = Field(default=None, gt=0)
    """Seconds after which a round ends with the updates that came; none: wait for everybody asked."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Share of the cohort whose updates a round needs (at least one)."""
    quorum_per_task: int = Field(default=0, ge=0)
    """Updates that a round needs from every task that was asked."""
    rejoin_grace_s: float = Field(default=15.0, ge=0)
    """Seconds that the seat of a client whose connection broke is kept, in the round that is open and in the next ones:
    a round waits for it so long. After a restart of the server the same holds for everybody who took part before."""
    rejoin_timeout_s: float | None = Field(default=600.0, gt=0)
    """Seconds without enough clients, once the run has begun, after which the run ends as failed."""
    max_attempts: int = Field(default=3, ge=1)
    """How often in a row a round that missed its quorum is tried before `on_lost_quorum` applies."""
    on_lost_quorum: Literal["pause", "fail"] = "pause"
    """pause: stand still until `python -m server resume` (or a restart with --resume). fail: end with exit code 3."""
    late_updates: Literal["refuse", "async"] = "refuse"
    """refuse: a round's updates come before it closes or not at all. async: rounds close when `buffer.size` updates are
    there, slow clients go on with what they have, and their late updates count in the round they arrive in, weighed
    by staleness. Who is late depends on timing, so two runs differ."""
    buffer: BufferConfig = BufferConfig()
    screening: ScreeningConfig = ScreeningConfig()
    evaluate: Literal["all", "cohort", "none"] = "all"
    """Who evaluates each aggregated model on its validation data: every connected client, those asked
    to train, or nobody. The first and the last version are evaluated by all unless none."""

    evaluate_every: int = Field(default=1, ge=1)
    """Evaluate only every so many versions, beside the first and the last: evaluation takes clients' time too."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.task_weights, dict):
            bad = {task: weight for task, weight in self.task_weights.items() if not 0 < weight < float("inf")}
            if bad:
                raise ValueError(f"task_weights must be positive and finite: {bad}")
        if self.late_updates == "async" and self.cohort.over_selection:
            raise ValueError("cohort.over_selection is of synchronous rounds; asynchronous ones have buffer.size")
        if self.late_updates == "async" and self.correction == "scaffold":
            raise ValueError("correction: scaffold is of synchronous rounds: set late_updates: refuse")
        if self.late_updates == "refuse" and self.buffer != BufferConfig():
            raise ValueError("buffer is of asynchronous rounds: set late_updates: async, or leave buffer out")
        return self


class Config(StrictModel):
    """The whole file."""

    run: RunConfig = RunConfig()
    server: ServerConfig = ServerConfig()
    federation: FederationConfig = FederationConfig()
    model: ModelConfig
    tasks: dict[str, Any] = Field(min_length=1)
    """Task name to its specification, or to ``{use: NAME, ...}`` for one of the shipped registry."""
    training: TrainSettings = TrainSettings()
    freezing: FreezingConfig = FreezingConfig()
    """What is trained in which round."""
    selection: SelectionConfig = SelectionConfig()
    """Which version is the best, and when a task or the run stops early."""
    training_overrides: tuple[TrainingOverride, ...] = ()
    """Other settings for some clients or tasks, such as ``{tasks: [stsb], set: {local_epochs: 3}}``. All that are for a
    client are applied in order."""

    @model_validator(mode="after")
    def _stops_by_evaluations(self) -> Self:
        if self.selection.early_stopping is not None and self.federation.evaluate == "none":
            raise ValueError("selection.early_stopping needs evaluations: set federation.evaluate to all or cohort")
        return self

    @model_validator(mode="after")
    def _corrections_are_possible(self) -> Self:
        if self.federation.correction != "scaffold":
            return self
        for where, found in (
            ("training", self.training.model_dump()),
            *(
                (f"training_overrides.{number}.set", override.set)
                for number, override in enumerate(self.training_overrides)
            ),
        ):
            if found.get("optimizer", "sgd") != "sgd" or found.get("momentum"):
                raise ValueError(
                    f"federation.correction: scaffold needs {where}.optimizer: sgd with momentum 0 "
                    f"(found: {found.get('optimizer', 'sgd')}, momentum {found.get('momentum', 0)})"
                )
        return self


class LoadedConfig(StrictModel):
    """A validated configuration with its tasks resolved, and where it came from."""

    config: Config
    specs: dict[str, TaskSpec]
    source: str
    base_dir: Path
    """Folder that relative paths of the file are resolved against."""

    def with_options(self, *, tls: Mapping[str, Path | None], allow_anonymous: bool) -> LoadedConfig:
        """The same with what the command line says about the server.

        Args:
            tls: files by their name in `server.tls`, relative to the working directory; None leaves one as it is.
            allow_anonymous: True allows it; False leaves it as it is.

        Raises:
            ConfigError: a certificate without its key, or a key without its certificate.
        """
        server = self.config.server
        given = {name: path.absolute() for name, path in tls.items() if path is not None}
        if given:
            before = server.tls.model_dump() if server.tls is not None else {}
            if missing := sorted({"cert", "key"} - (before | given).keys()):
                raise ConfigError(f"--tls-{missing[0]} is missing (or server.tls.{missing[0]}): TLS needs both")
            server = server.model_copy(update={"tls": TlsConfig.model_validate(before | given)})
        if allow_anonymous:
            server = server.model_copy(update={"allow_anonymous": True})
        return self.model_copy(update={"config": self.config.model_copy(update={"server": server})})


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read, override and validate a configuration file.

    Raises:
        ConfigError: whatever is wrong, with file, key path, value and what is allowed.
    """
    return resolve_config(apply_overrides(read_yaml(path), overrides), str(path), path.resolve().parent)


def resolve_config(data: Mapping[str, Any], source: str, base_dir: Path) -> LoadedConfig:
    """Validate configuration data, including its tasks and what sections say about each other."""
    config = validate(Config, data, source)
    specs = load_registry(config.tasks, source)
    weights = config.federation.task_weights
    if isinstance(weights, dict) and weights.keys() != specs.keys():
        raise ConfigError(
            f"{source}: federation.task_weights: give a weight for each of {sorted(specs)} (found: {sorted(weights)})"
        )
    if OVERALL in specs:
        raise ConfigError(f"{source}: tasks.{OVERALL}: the summary calls the run's best version so; rename it")
    Selection.of(config.selection, specs, source)
    check_overrides(config.training, config.training_overrides, specs.keys(), source)
    config = config.model_copy(update={"server": config.server.located(base_dir)})
    return LoadedConfig(config=config, specs=specs, source=source, base_dir=base_dir)
