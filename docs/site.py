"""Hooks of the documentation site: pages of the repository outside `docs/`, and links to its files.

The start page is README.md. A file outside `docs/` that a page links to becomes part of the site under `repository/`:
Markdown as a page, anything else as it is, a folder by its README. Links are written for readers of the
repository, and turned into the site's here.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the start page and every file outside `docs/` that a page links to, directly or by way of another."""
    waiting = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    waiting += DOCS.rglob("*.md")
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting += _linked_files(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = Path(page.file.abs_src_path or "")

    def on_site(match: re.Match[str]) -> str:
        target = _file(here, match[1])
        return match[1] if target is None else os.path.relpath(_uri(target), Path(page.file.src_uri).parent)

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(on_site, part) for part in parts[::2]]
    parts[1::2] = [part.replace("```python no-run", "```python", 1) for part in parts[1::2]]
    return "".join(parts)


def _linked_files(page: Path) -> Iterator[Path]:
    for part in FENCE.split(page.read_text(encoding="utf-8"))[::2]:
        for link in LINK.findall(part):
            if (target := _file(page, link)) is not None:
                yield target


def _file(page: Path, link: str) -> Path | None:
    """The file of the repository that a page's link leads to; a folder's is its README. None for other links."""
    if ":" in link:
        return None
    target = (page.parent / link).resolve()
    if target.is_dir() and (target / "README.md").is_file():
        target /= "README.md"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def _uri(path: Path) -> str:
    if path == ROOT / "README.md":
        return "index.md"
    return (
        path.relative_to(DOCS).as_posix()
        if path.is_relative_to(DOCS)
        else f"repository/{path.relative_to(ROOT).as_posix()}"
    )
