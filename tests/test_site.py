"""The site of `make docs`: built without a warning, and read in a browser that reaches no other server."""

import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import pytest

from browser import needs_chromium, shown
from builders import DOCS, ROOT, listed

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site by `make docs`, without rebuilding the environment."""
    folder = tmp_path_factory.mktemp("site")
    make = ["make", "--old-file=.venv/.ready", "docs", f"PY={sys.executable}", f"SITE={folder}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, re.findall(r"^WARNING.*", done.stderr, re.MULTILINE)) == (0, []), done.stderr
    return folder


class Alone(SimpleHTTPRequestHandler):
    """A server of the site. The browser refuses every request to another server and prints a message."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data:")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the site; yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Alone, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def headings(page: str, level: int) -> list[str]:
    found = re.findall(rf"<h{level}\b[^>]*>(.*?)</h{level}>", page, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", text)).strip(" \n¶") for text in found]


@needs_chromium
def test_a_browser_reads_every_page(address: str, tmp_path: Path) -> None:
    def read(url: str) -> str:
        seen = shown(url, tmp_path)
        assert [line for line in seen.stderr.splitlines() if "CONSOLE" in line] == [], url
        return seen.stdout

    start = f"{address}/index.html"
    links = re.findall(r'<a href="([^"#]+)" class="md-nav__link', read(start))
    pages = [read(url) for url in sorted({urljoin(start, link) for link in links})]
    titles = [re.findall(r"^# (.+)$", path.read_text(), re.MULTILINE)[0].replace("`", "") for path in DOCS]
    assert sorted(title for page in pages for title in headings(page, 1)) == sorted([*titles, *listed()])
    for module, names in listed().items():
        assert [headings(page, 2) for page in pages if headings(page, 1) == [module]] == [names]
    assert not [page for page in pages if re.search(r"<link[^>]+https?://", page)], "nor is a connection prepared"


def test_links_out_of_the_documents_stay_as_text_and_public_names_become_links() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="cards/x.md"))
    text = "[readme](../../README.md), [surgery](../surgery.md), `trace`\n\n## API\n\n`trace(model)`, `other`\n"
    assert runpy.run_path(str(ROOT / "docs" / "hooks.py"))["on_page_markdown"](text, page=page) == (
        "readme, [surgery](../surgery.md), `trace`\n\n## API\n\n"
        "[`trace(model)`][perturblab.layers.surgery.tracing.trace], `other`\n"
    )
