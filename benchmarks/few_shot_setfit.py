"""SetFit on train.jsonl and test.jsonl of a folder, for `benchmarks/few_shot.py`: run by a Python that has setfit.

`python few_shot_setfit.py BASE FOLDER` prints accuracy and seconds of training as JSON. It imports nothing of peftlab.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments

NUM_ITERATIONS = 20  # pairs of each kind per row; everything else is the package's default


def main(base: str, folder: Path) -> None:
    """Train, predict, print."""
    train, test = (_read(folder / f"{split}.jsonl") for split in ("train", "test"))
    labels = sorted({row["label"] for row in train})
    start = time.perf_counter()
    model = SetFitModel.from_pretrained(base, labels=labels)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            num_iterations=NUM_ITERATIONS, report_to="none", output_dir=output, save_strategy="no"
        )
        rows = {"text": [row["text"] for row in train], "label": [labels.index(row["label"]) for row in train]}
        Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows)).train()
    seconds = time.perf_counter() - start
    predicted = model.predict([row["text"] for row in test])
    right = sum(str(label) == row["label"] for label, row in zip(predicted, test, strict=True))
    print(json.dumps({"accuracy": right / len(test), "seconds": round(seconds, 1)}))


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
