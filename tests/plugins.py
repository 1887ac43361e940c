"""A Python package as `pip install` leaves it: one module and its entry points, in a folder on `sys.path`."""

from pathlib import Path


def install_plugin(folder: Path, module: str, source: str, entry_points: dict[str, dict[str, str]]) -> Path:
    """Write the package `module` into `folder`; `entry_points` maps group → name → object in the module."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source, encoding="utf8")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {module}:{target}" for name, target in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
