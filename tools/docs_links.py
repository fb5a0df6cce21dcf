"""What mkdocs does to each page: links to files outside `docs/` become links into the repository.

On disk and on a code host `[rows](../experiments/results/fuzz.jsonl)` is a link to a file. The site
has no such file. With `repo_url` set in mkdocs.yml the link goes there; without, the path is shown.
"""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page before it is rendered."""
    return rewrite(markdown, page.file.src_uri, config.repo_url)


def rewrite(markdown: str, page: str, repository: str | None) -> str:
    """Replaces the links of `page` (its path inside `docs/`) that lead out of `docs/`."""

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return link.group()
        if repository:
            return f"[{text}]({repository.rstrip('/')}/blob/main/{path}{anchor or ''})"
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)
