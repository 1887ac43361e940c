"""The manifest of a published adapter, `peftlab.json`: what it was tuned on, how, with which scores and files.

Format 2 is a JSON object with these keys. `null` means not known or not used.

    format             2; a file without it has format 1, see manifest_v1.py
    name, version      of the adapter in its store
    created            when it was tuned or imported, ISO 8601 in UTC
    task               type, labels, head_labels (names of the head's outputs), auto_class (of Transformers),
                       options (keys of the recipe's task section), learned (numbers that came from the data)
    base               model, revision, fingerprint (sha256 of the weights), tokenizer_sha256, trust_remote_code,
                       quantization (8bit, 4bit or null), own_head (Linear layers of the head that the base brings),
                       bytes: {fp32, in memory}
    head_modules       modules that the adapter saves in full, because the checkpoint of the base lacks them
    method             type of the method, such as lora
    started_from       only after method.start_from: adapter, manifest_sha256, tensors (how many were loaded),
                       head (whether its head was), anew (modules newly initialized), left (modules skipped)
    max_length         longest input in tokens
    parameters         trained, base
    data               sha256, ledger: for each split source, read, used, dropped (by reason), cut (truncated rows),
                       targets, targets_lost, notes (by reason)
    scores             for each split: each score by its name, by_label, and where there are any confusion, signatures
    main_score         name of the score that the best epoch was chosen by
    reload_difference  largest difference of logits between training and the reloaded adapter
    seconds            how long tuning or importing took
    imported           only for imported adapters: source, place, commit, peft_version, head_order, notes,
                       difference (from plain PEFT's logits), largest_logit
    versions           of Python and of the libraries
    files              sha256 of every other file of the adapter
    manifest_sha256    sha256 of the manifest without this key

Other keys are kept and not used: a later version of peftlab may add some. It increases `format` when a reader of today
would misunderstand the file.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    PlainValidator,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from peftlab.errors import IntegrityError
from peftlab.recipe import Quantization
from peftlab.store.layout import MANIFEST_FILE
from peftlab.store.manifest_v1 import upgrade_v1
from peftlab.tasks import Confusion, Scores, Task, task_description, task_from_manifest

FORMAT: Final = 2
OPTIONAL_SECTIONS = ("started_from", "imported")  # not written where they do not apply
RECORDED_VERSIONS = ("peftlab", "torch", "transformers", "peft", "bitsandbytes", "tokenizers")
MAX_ERRORS = 10  # listed in one message

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

    def to_dict(self) -> dict[str, Any]:
        """JSON values, under the keys of the file."""
        return self.model_dump(mode="json", by_alias=True)


class TaskInfo(ManifestPart):
    """A task with its labels. `state` holds numbers that came from the training data."""

    type: str
    labels: tuple[str, ...]
    head_labels: tuple[str, ...]
    auto_class: str
    options: dict[str, Any]
    state: Annotated[dict[str, Any], Field(alias="learned")]

    @classmethod
    def from_task(cls, task: Task) -> Self:
        """Describe a task that is ready to predict."""
        return cls.model_validate_json(json.dumps(task_description(task)))

    def build(self) -> Task:
        """Build the task.

        Raises:
            IntegrityError: this version of peftlab does not know the task, or the task has no such options.
        """
        try:
            return task_from_manifest(self.to_dict())
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise IntegrityError(f"the task '{self.type}' cannot be built from its manifest: {error}") from error


class BaseMemory(ManifestPart):
    """Bytes that the weights of the base take: in fp32, and as they were in memory."""

    fp32: Count
    in_memory: Annotated[Count, Field(alias="in memory")]


class BaseInfo(ManifestPart):
    """The base model. `fingerprint` is the sha256 of its weights.

    `pretrained_head` names the Linear layers of the head that comes with the base, where the task adds none.
    """

    model: str
    revision: str | None
    fingerprint: str
    tokenizer_sha256: str
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


class _ScoreFields(ManifestPart):
    """Scores as they are written: each value under its own name, next to the fields."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)
    by_label: dict[str, dict[str, Number]]
    confusion: _ConfusionFields | None = None
    signatures: dict[str, str] = {}

    def to_scores(self) -> Scores:
        found = self.confusion
        confusion = Confusion(found.labels, found.counts) if found else None
        return Scores(dict(self.__pydantic_extra__), self.by_label, confusion, self.signatures)


def _scores_schema(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Validate `Scores` as `_ScoreFields`, and write them as they write themselves."""

    def validate(value: Any, validate_fields: core_schema.ValidatorFunctionWrapHandler) -> Scores:
        return value if isinstance(value, Scores) else validate_fields(value).to_scores()

    written = core_schema.plain_serializer_function_ser_schema(Scores.as_dict)
    return core_schema.no_info_wrap_validator_function(validate, handler(_ScoreFields), serialization=written)


StoredScores = Annotated[Scores, GetPydanticSchema(_scores_schema)]


class Manifest(ManifestPart):
    """The manifest of a published adapter.

    `Store.publish` fills in `version`, `files` and `manifest_sha256`.
    """

    format: Literal[2] = FORMAT
    name: str
    created: str
    task: TaskInfo
    base: BaseInfo
    head_modules: tuple[str, ...] | None
    method: str
    started_from: StartInfo | None = None
    max_length: Annotated[int, Field(ge=1)]
    parameters: ParameterCounts
    data: DataInfo
    scores: dict[str, StoredScores]
    main_score: str
    reload_difference: Number | None
    seconds: Number
    imported: ImportInfo | None = None
    versions: dict[str, str]
    version: Count = 0
    files: dict[str, str] = {}
    manifest_sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest of any format.

        Raises:
            IntegrityError: the file is not, byte for byte, what was published, or its content is no manifest.
        """
        try:
            text = path.read_bytes().decode()
            values = json.loads(text)
            is_intact = isinstance(values, dict) and text == canonical_text(values)
        except (ValueError, RecursionError):
            is_intact = False
        if not is_intact:
            raise IntegrityError(f"{path} is not what was published: {MANIFEST_FILE}: changed")
        return cls.from_dict(values, str(path))

    @classmethod
    def from_dict(cls, values: Any, where: str = MANIFEST_FILE) -> Self:
        """Upgrade JSON values of any format to this one, and validate them.

        Raises:
            IntegrityError: they are no manifest; lists the fields that are wrong, and `where`.
        """
        try:
            return cls.model_validate_json(json.dumps(_upgrade(values, where)))
        except ValidationError as error:
            raise IntegrityError(_describe(error, where)) from error

    def to_dict(self) -> dict[str, Any]:
        """JSON values in format 2."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL_SECTIONS}

    def to_json(self) -> str:
        """The text of the file, with its own sha256."""
        return canonical_text(self.to_dict())

    def published(self, name: str, version: int, files: dict[str, str]) -> Self:
        """The same manifest under a name and version, with the sha256 of each file of the adapter."""
        manifest = self.model_copy(update={"name": name, "version": version, "files": files})
        return manifest.model_copy(update={"manifest_sha256": _digest(manifest.to_dict())})


def build_manifest(
    name: str,
    task: Task,
    base: BaseInfo,
    *,
    method: str,
    max_length: int,
    parameters: ParameterCounts,
    head_modules: tuple[str, ...],
    seconds: float,
    data: DataInfo | None = None,
    scores: Mapping[str, Scores] | None = None,
    reload_difference: float | None = None,
    started_from: StartInfo | None = None,
    imported: ImportInfo | None = None,
) -> Manifest:
    """Describe an adapter that was tuned or imported just now, for `Store.publish`."""
    versions = {package: importlib.metadata.version(package) for package in RECORDED_VERSIONS}
    return Manifest(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=TaskInfo.from_task(task),
        base=base,
        head_modules=head_modules,
        method=method,
        started_from=started_from,
        max_length=max_length,
        parameters=parameters,
        data=data or DataInfo(),
        scores=dict(scores or {}),
        main_score=task.main_score,
        reload_difference=reload_difference,
        seconds=round(seconds, 1),
        imported=imported,
        versions={"python": platform.python_version(), **versions},
    )


def canonical_text(values: Mapping[str, Any]) -> str:
    """The only valid spelling of a manifest with these values, with its sha256 as the last key."""
    body = {key: value for key, value in values.items() if key != "manifest_sha256"}
    return json.dumps({**body, "manifest_sha256": _digest(body)}, indent=2, ensure_ascii=False) + "\n"


def _digest(values: Mapping[str, Any]) -> str:
    body = {key: value for key, value in values.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(body, indent=2, ensure_ascii=False).encode()).hexdigest()


def _upgrade(values: Any, where: str) -> Any:
    """Bring the values of an older format into this one."""
    if not isinstance(values, Mapping):
        return values
    number = values.get("format", 1)
    if type(number) is int and number == 1:
        return upgrade_v1(values)
    if type(number) is not int or number != FORMAT:
        raise IntegrityError(
            f"{where} has format {json.dumps(number)[:50]}, and this version of peftlab reads formats 1 to {FORMAT}. "
            "Update peftlab: pip install --upgrade peftlab"
        )
    return values


def _describe(error: ValidationError, where: str) -> str:
    """One line for each field that is wrong."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"  {'.'.join(map(str, fault['loc'])) or 'content'}: {_in_words(fault)}" for fault in errors[:MAX_ERRORS]]
    more = [f"  and {len(errors) - MAX_ERRORS} more"] if len(errors) > MAX_ERRORS else []
    return "\n".join([f"{where} is not a valid manifest:", *lines, *more])


def _in_words(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "missing":
        return "is missing"
    message: str = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return message.replace("Object", "object").replace("Array", "array")
