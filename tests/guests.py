"""Packages that offer rows, as an installer would leave them: a module and its metadata in a folder on the path."""

from __future__ import annotations

from pathlib import Path


def installed(folder: Path, name: str, version: str, source: str, points: dict[str, dict[str, str]]) -> None:
    """Write a package with entry points into a folder; put the folder on the path to install it.

    Args:
        folder: where, as a site-packages.
        name: of the distribution; its module is called alike, with underscores.
        version: of the distribution.
        source: of the module.
        points: group -> name -> attribute of the module.
    """
    module = name.replace("-", "_").replace(".", "_")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [
        line
        for group, rows in points.items()
        for line in (f"[{group}]", *(f"{row} = {module}:{attribute}" for row, attribute in rows.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
