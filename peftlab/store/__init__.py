"""Adapters on disk: published atomically, resolved by name, verified byte by byte."""

from peftlab.store.store import MANIFEST, ON, Adapter, Edition, Store, open_to_readers

__all__ = ["MANIFEST", "ON", "Adapter", "Edition", "Store", "open_to_readers"]
