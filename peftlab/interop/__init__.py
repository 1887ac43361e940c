"""Import adapters that plain PEFT saved; export adapters for PEFT, vLLM, llama.cpp and Ollama."""

from peftlab.imports import heavy_imports

with heavy_imports():
    from peftlab.interop.export import ExportedAdapter, ExportFormat, export_adapter
    from peftlab.interop.importer import Imported, import_adapter
    from peftlab.interop.merge import Merged, merge

__all__ = ["ExportFormat", "ExportedAdapter", "Imported", "Merged", "export_adapter", "import_adapter", "merge"]
