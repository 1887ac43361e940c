"""Read files or datasets into rows: one reader per format, splits, a content hash, and a ledger of what was lost."""

from peftlab.data.ledger import Ledger
from peftlab.data.loading import load_rows
from peftlab.data.rows import DataSplits, Row, Split

__all__ = ["DataSplits", "Ledger", "Row", "Split", "load_rows"]
