"""Check the built site: links, alt texts, the language of labels, and that it needs no network.

python docs/check.py build/docs/html
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

#: Attributes by which a page loads a file. Links of the reader (`a href`) may lead to other sites.
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"), ("iframe", "src"), ("object", "data")}


class Page(HTMLParser):
    """The identities, texts, links, loaded files and mistakes of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.texts: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.mistakes: list[str] = []
        self.language = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if "id" in found:
            self.ids.add(found["id"])
        self.texts.update(found[name] for name in ("aria-label", "title") if name in found)
        if tag == "html":
            self.language = found.get("lang", "")
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img" and (not found.get("alt", "").strip() or found["alt"].startswith(("_images", "../_images"))):
            self.mistakes.append(f"no alt text: {found.get('src')}")
        if tag == "link" and found.get("rel") not in ("stylesheet", "icon", "preload"):
            return
        self.loaded += [value for name, value in found.items() if (tag, name) in LOADED]

    def handle_data(self, text: str) -> None:
        self.texts.add(text.strip())


@cache
def labels_of_the_theme() -> tuple[str, ...]:
    """Return the English texts of the theme, which Chinese pages must not have."""
    table = json.loads((Path(__file__).parent / "zh" / "theme.json").read_text(encoding="utf-8"))
    return tuple(unescape(re.sub(r"<[^>]*>|_\(\"|\"\)", "", text)).strip() for text in table)


def is_elsewhere(address: str) -> bool:
    return bool(urlparse(address).scheme or urlparse(address).netloc)


def problems(page: Page, pages: dict[Path, Page], site: Path) -> list[str]:
    """Return what is wrong with a page."""
    found = [*page.mistakes]
    if not page.language:
        found.append("no language")
    if page.language.startswith("zh"):
        labels = labels_of_the_theme()
        found += [f"not translated: {text}" for text in sorted(page.texts) if text.startswith(labels)]
    found += [
        f"needs the network: {address}" for address in page.loaded if is_elsewhere(address) and "data:" not in address
    ]
    for address in [*page.links, *page.loaded]:
        if is_elsewhere(address):
            continue
        target, anchor = urldefrag(address)
        path = (page.path.parent / unquote(urlparse(target).path)).resolve() if target else page.path
        if not path.is_relative_to(site):
            found.append(f"leads out of the site: {address}")
        elif not path.is_file():
            found.append(f"leads nowhere: {address}")
        elif anchor and path in pages and unquote(anchor) not in pages[path].ids:
            found.append(f"no such place: {address}")
    return found


def styles(site: Path) -> list[str]:
    """Return the style sheets that load files from other sites."""
    return [
        f"{path.relative_to(site)}: needs the network"
        for path in site.rglob("*.css")
        if any(start in path.read_text(errors="replace") for start in ("url(http", 'url("http', "url('http", "url(//"))
    ]


def undocumented(pages: dict[Path, Page]) -> list[str]:
    """Return the public names of fastconv that have no entry in the reference."""
    import fastconv
    from fastconv import builder, classifier, functional, models, nn, optim, reference, tuning
    from fastconv.classifier import data, plots

    ids = set().union(*(page.ids for page in pages.values()))
    modules = (fastconv, builder, classifier, data, functional, models, nn, optim, plots, reference, tuning)
    names = [
        f"{module.__name__}.{name}" for module in modules for name in module.__all__ if callable(getattr(module, name))
    ]
    return [f"{name} is not in the reference" for name in names if name not in ids]


def main(folder: str) -> int:
    site = Path(folder).resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = [
        f"{path.relative_to(site)}: {text}" for path, page in pages.items() for text in problems(page, pages, site)
    ]
    found += styles(site) + undocumented(pages)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links, {len(found)} problems")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
