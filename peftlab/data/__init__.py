"""Files or the Hub → rows: one reader per format, splits given or carved, a content hash, and a ledger of losses."""

from peftlab.data.ledger import Ledger
from peftlab.data.loading import load_rows
from peftlab.data.rows import DataSplits, Row, Split

__all__ = ["DataSplits", "Ledger", "Row", "Split", "load_rows"]
