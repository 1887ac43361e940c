"""The parts of a manifest, each a frozen and validated record; see manifest.py for the keys in the file."""

import copy
import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema, core_schema

from peftlab.errors import IntegrityError
from peftlab.recipe import HeadPooling, Quantization
from peftlab.tasks import Calibration, Confusion, Scores, Task, restore_task

Count = Annotated[int, Field(ge=0)]


def _check_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("should be a number")
    return value


Number = Annotated[float, PlainValidator(_check_number)]
"""An int stays an int."""


class ManifestPart(BaseModel):
    """A part of a manifest: frozen, validated, written and read under the aliases of its fields."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="allow", populate_by_name=True, ser_json_inf_nan="constants"
    )
    omitted_if_empty: ClassVar[tuple[str, ...]] = ()
    """Keys that are written only if they say something; manifests of earlier versions do not have them."""

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if value or key not in self.omitted_if_empty}

    def to_dict(self) -> dict[str, Any]:
        """JSON values, under the keys of the file."""
        return self.model_dump(mode="json", by_alias=True)


class TaskInfo(ManifestPart):
    """A task with its labels. `state` holds numbers computed from the training data.

    `pooling` is what a head that pools reads; None, which is not written, means the architecture's own head.
    """

    type: str
    labels: tuple[str, ...]
    head_labels: tuple[str, ...]
    auto_class: str
    options: dict[str, Any]
    state: Annotated[dict[str, Any], Field(alias="learned")]
    pooling: HeadPooling | None = None
    omitted_if_empty: ClassVar[tuple[str, ...]] = ("pooling",)

    @classmethod
    def from_task(cls, task: Task) -> Self:
        """Describe a task that is ready to predict."""
        values = {
            "type": task.type,
            "labels": task.labels,
            "head_labels": task.head.labels,
            "auto_class": task.head.auto_class,
            "pooling": task.head.pooling,
        }
        learned = {name: value for name, value in task.state.items() if name != "pooling"}
        return cls.model_validate_json(json.dumps({**values, "options": task.options, "learned": learned}))

    def build(self) -> Task:
        """Build the task.

        Raises:
            IntegrityError: this version of peftlab does not know the task, or the task has no such options.
        """
        state = copy.deepcopy(self.state) | ({"pooling": self.pooling} if self.pooling else {})
        try:
            return restore_task(self.type, self.labels, copy.deepcopy(self.options), state)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise IntegrityError(f"the task '{self.type}' cannot be built from its manifest: {error}") from error


class BaseMemory(ManifestPart):
    """Bytes that the weights of the base take: in fp32, and as they were in memory."""

    fp32: Count
    in_memory: Annotated[Count, Field(alias="in memory")]


class BaseInfo(ManifestPart):
    """The base model. `fingerprint` is the sha256 of its weights, `inputs_fingerprint` that of its tokenizer.

    `pretrained_head` names the Linear layers of the base's own head, if the task adds no head.
    """

    model: str
    revision: str | None
    fingerprint: str
    inputs_fingerprint: Annotated[str, Field(alias="tokenizer_sha256")]
    trust_remote_code: bool
    quantization: Quantization | None
    pretrained_head: Annotated[tuple[str, ...], Field(alias="own_head")]
    memory: Annotated[BaseMemory | None, Field(alias="bytes")]


class ParameterCounts(ManifestPart):
    """How many parameters are trained, and how many the base has."""

    trained: Count
    base: Count


class LedgerInfo(ManifestPart):
    """What happened to the rows of one split; see `peftlab.data.Ledger`."""

    source: str
    read: Count
    used: Count
    dropped: dict[str, Count]
    truncated: Annotated[Count, Field(alias="cut")]
    targets: Count
    num_lost_targets: Annotated[Count, Field(alias="targets_lost")]
    omitted_if_empty: ClassVar[tuple[str, ...]] = ("unknown_tokens", "unknown_characters")
    unknown_tokens: Number = 0.0
    unknown_characters: Number = 0.0
    warnings: Annotated[dict[str, Count], Field(alias="notes")]


class DataInfo(ManifestPart):
    """The rows: their sha256, and what happened to them in each split."""

    sha256: str | None = None
    ledger: dict[str, LedgerInfo] = {}


class StartInfo(ManifestPart):
    """The adapter that a run started from; see `method.start_from` in a recipe.

    `num_tensors` counts tensors that were loaded. `newly_initialized` names modules that the adapter did not have,
    `skipped` modules of the adapter that the new model does not have.
    """

    adapter: str
    manifest_sha256: str
    num_tensors: Annotated[Count, Field(alias="tensors")]
    with_head: Annotated[bool, Field(alias="head")]
    newly_initialized: Annotated[tuple[str, ...], Field(alias="anew")]
    skipped: Annotated[tuple[str, ...], Field(alias="left")]


class BaselineInfo(ManifestPart):
    """The main score of the adapter, and those of baselines, on one split.

    `majority` is the score of the most frequent answer, or of the mean, for every row. `linear_probe` is that of a
    linear layer fitted to states of the frozen base, on `training_rows`, and scored on `scored_rows`; None if the head
    has no layer to fit. `hint` says what to try if the adapter is below the probe.
    """

    split: str
    metric: str
    greater_is_better: bool
    adapter: Number
    majority: Number
    linear_probe: Number | None
    training_rows: Count
    scored_rows: Count
    hint: str = ""

    @property
    def is_above_majority(self) -> bool:
        """Whether the adapter is better than the majority."""
        return self.adapter > self.majority if self.greater_is_better else self.adapter < self.majority

    @property
    def is_above_probe(self) -> bool:
        """Whether the adapter is at least as good as the linear probe, if there is one."""
        if self.linear_probe is None:
            return True
        return self.adapter >= self.linear_probe if self.greater_is_better else self.adapter <= self.linear_probe

    def __str__(self) -> str:
        probe = [] if self.linear_probe is None else [f"linear probe {self.linear_probe:.3f}"]
        parts = [*probe, f"majority {self.majority:.3f}", f"this adapter {self.adapter:.3f}"]
        return f"{self.split} {self.metric}: {' · '.join(parts)}"


class ImportInfo(ManifestPart):
    """Where an imported adapter came from, and how it compared with plain PEFT.

    `head_order` is the original index of each output of the head; `difference` is the largest difference of logits.
    """

    source: str
    place: str
    commit: str | None
    peft_version: str | None
    head_order: tuple[int, ...] | None
    notes: tuple[str, ...]
    difference: Number
    largest_logit: Number


class _ConfusionFields(ManifestPart):
    labels: list[str]
    counts: list[list[int]]


class _CalibrationFields(ManifestPart):
    ece: Number
    ece_debiased: Number
    ece_uncalibrated: Number | None
    counts: list[Count]
    confidences: list[Number]
    accuracies: list[Number]

    def to_calibration(self) -> Calibration:
        return Calibration(**{name: getattr(self, name) for name in type(self).model_fields})


class _ScoreFields(ManifestPart):
    """Scores as they are written: each value under its own name, next to the fields."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)
    by_label: dict[str, dict[str, Number]]
    confusion: _ConfusionFields | None = None
    signatures: dict[str, str] = {}
    calibration: _CalibrationFields | None = None

    def to_scores(self) -> Scores:
        found = self.confusion
        confusion = Confusion(found.labels, found.counts) if found else None
        calibration = self.calibration.to_calibration() if self.calibration else None
        return Scores(dict(self.__pydantic_extra__), self.by_label, confusion, self.signatures, calibration)


def _scores_schema(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Validate `Scores` as `_ScoreFields`, and serialize them with `Scores.as_dict`."""

    def validate(value: Any, validate_fields: core_schema.ValidatorFunctionWrapHandler) -> Scores:
        return value if isinstance(value, Scores) else validate_fields(value).to_scores()

    written = core_schema.plain_serializer_function_ser_schema(Scores.as_dict)
    return core_schema.no_info_wrap_validator_function(validate, handler(_ScoreFields), serialization=written)


StoredScores = Annotated[Scores, GetPydanticSchema(_scores_schema)]
