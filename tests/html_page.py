"""An HTML page as a test sees it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID_TAGS = {"meta", "link", "img", "br", "line", "polyline"}


class Page(HTMLParser):
    """What a browser would find: unbalanced tags, addresses, pictures, tables, ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def values(self, tag: str, key: str) -> list[str]:
        """The values of an attribute of all tags of a kind."""
        return [attrs.get(key) or "" for name, attrs in self.tags if name == tag]
