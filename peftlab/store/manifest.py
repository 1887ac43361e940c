"""The manifest of a published adapter, `peftlab.json`: its data, method, scores and files.

Format 2 is a JSON object with these keys. `null` means not known or not used.

    format             2; a file without it has format 1, see manifest_v1.py
    name, version      of the adapter in its store
    created            when it was tuned or imported, ISO 8601 in UTC
    task               type, labels, head_labels (names of the head's outputs), auto_class (of Transformers),
                       options (keys of the recipe's task section), learned (numbers that came from the data),
                       pooling (mean, max, last or entity-start; missing: the architecture's own head)
    base               model, revision, fingerprint (sha256 of the weights), tokenizer_sha256, trust_remote_code,
                       quantization (8bit, 4bit or null), own_head (Linear layers of the head that the base brings),
                       bytes: {fp32, in memory}
    head_modules       modules that the adapter saves in full, because the checkpoint of the base lacks them
    method             type of the method, such as lora
    started_from       only after method.start_from: adapter, manifest_sha256, tensors (how many were loaded),
                       head (whether its head was loaded), anew (modules newly initialized), left (modules skipped)
    max_length         longest input in tokens
    parameters         trained, base
    data               sha256, ledger: for each split source, read, used, dropped (by reason), cut (truncated rows),
                       targets, targets_lost, notes (by reason)
    scores             for each split: each score by its name, by_label, and, if they exist, calibration, confusion
                       and signatures
    main_score         name of the score that the best epoch was chosen by
    baselines          only for tasks with classes, tags or numbers: split, metric, greater_is_better, and on that split
                       the score of the adapter, of the majority and of linear_probe (null if there is none), which was
                       fitted on training_rows and scored on scored_rows; hint if the adapter is below the probe
    validation         only without a validation split: how the run was validated, as in "4-fold cross-validation"
    reload_difference  largest difference of logits between training and the reloaded adapter
    seconds            how long tuning or importing took
    imported           only for imported adapters: source, place, commit, peft_version, head_order, notes,
                       difference (from plain PEFT's logits), largest_logit
    versions           of Python and of the libraries
    files              sha256 of every other file of the adapter
    manifest_sha256    sha256 of the manifest without this key

Other keys are kept and ignored: a later version of peftlab may add some. A later version increases `format` if this
version would misread the file.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError

from peftlab.errors import IntegrityError
from peftlab.store.layout import MANIFEST_FILE
from peftlab.store.manifest_parts import (
    BaseInfo,
    BaselineInfo,
    Count,
    DataInfo,
    ImportInfo,
    ManifestPart,
    Number,
    ParameterCounts,
    StartInfo,
    StoredScores,
    TaskInfo,
)
from peftlab.store.manifest_v1 import upgrade_v1
from peftlab.tasks import Scores, Task

FORMAT: Final = 2
OPTIONAL_SECTIONS = ("started_from", "baselines", "validation", "imported")  # left out of the file if they are None
MAIN_SPLITS = ("test", "validation", "cross-validation")
RECORDED_VERSIONS = ("peftlab", "torch", "transformers", "peft", "bitsandbytes", "tokenizers")
MAX_ERRORS = 10  # listed in one message


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
    baselines: BaselineInfo | None = None
    validation: str | None = None
    reload_difference: Number | None
    seconds: Number
    imported: ImportInfo | None = None
    versions: dict[str, str]
    version: Count = 0
    files: dict[str, str] = Field(default_factory=dict)
    manifest_sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest of any format.

        Raises:
            IntegrityError: the file differs from the published one, or its content is not a valid manifest.
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
            IntegrityError: the values are not a valid manifest; lists the wrong fields, and names `where`.
        """
        try:
            return cls.model_validate_json(json.dumps(_upgrade(values, where)))
        except ValidationError as error:
            raise IntegrityError(_describe(error, where)) from error

    @property
    def main_split(self) -> str | None:
        """The split whose scores describe the adapter best; None if it was not scored."""
        return main_split(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """JSON values in format 2."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL_SECTIONS}

    def to_json(self) -> str:
        """The text of the file, with its own sha256."""
        return canonical_text(self.to_dict())

    def finalize(self, name: str, version: int, files: dict[str, str]) -> Self:
        """The same manifest under a name and version, with the sha256 of each file of the adapter."""
        manifest = self.model_copy(update={"name": name, "version": version, "files": files})
        return manifest.model_copy(update={"manifest_sha256": _digest(manifest.to_dict())})


def main_split(scores: Mapping[str, Any]) -> str | None:
    """The first of MAIN_SPLITS that has scores."""
    return next((split for split in MAIN_SPLITS if split in scores), None)


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
    baselines: BaselineInfo | None = None,
    validation: str | None = None,
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
        main_score=task.metric.name,
        baselines=baselines,
        validation=validation,
        reload_difference=reload_difference,
        seconds=round(seconds, 1),
        imported=imported,
        versions={"python": platform.python_version(), **versions},
    )


def canonical_text(values: Mapping[str, Any]) -> str:
    """The text that the file of a manifest with these values must have; its sha256 is the last key."""
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
    lines = [
        f"  {'.'.join(map(str, detail['loc'])) or 'content'}: {_in_words(detail)}" for detail in errors[:MAX_ERRORS]
    ]
    more = [f"  and {len(errors) - MAX_ERRORS} more"] if len(errors) > MAX_ERRORS else []
    return "\n".join([f"{where} is not a valid manifest:", *lines, *more])


def _field_name(detail: Mapping[str, Any]) -> str:
    """`task.labels.0`; `content` for the manifest itself."""
    return ".".join(map(str, detail["loc"])) or "content"


def _in_words(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "missing":
        return "is missing"
    message: str = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return message.replace("Object", "object").replace("Array", "array")
