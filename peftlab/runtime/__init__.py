"""One resident base, many adapters: `load()` them into a bank and predict."""

from peftlab.runtime.bank import Answer, Bank, load

__all__ = ["Answer", "Bank", "load"]
