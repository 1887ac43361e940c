"""A text in short."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.tasks.generation.sequence_to_sequence import GeneratedText, SequenceToSequenceTask, Source
from peftlab.tasks.metrics.overlap import rouge
from peftlab.tasks.task import Scores


class SummarizationTask(SequenceToSequenceTask):
    """Rows have `text` and `summary`, one or a list of several."""

    type = "summarization"
    noun = "summaries"
    target_column = "summary"
    metric_name = "rougeL"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        prefix: str | None = None,
        generation: Mapping[str, Any] | None = None,
        rouge_tokenize: str = "unicode",
    ) -> None:
        super().__init__(labels=labels, prefix=prefix, generation=generation)
        self.rouge_tokenize = rouge_tokenize

    @property
    def options(self) -> dict[str, Any]:
        """And how ROUGE splits texts."""
        return {**super().options, "rouge_tokenize": self.rouge_tokenize}

    def score(self, examples: Sequence[Source], predictions: Sequence[GeneratedText]) -> Scores:
        """ROUGE; see `rouge`."""
        written = [prediction.written for prediction in predictions]
        return rouge(written, [example.references for example in examples], self.rouge_tokenize)
