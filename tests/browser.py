"""A headless browser, for the tests that look at a page as its reader does."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install Debian's package chromium")


def shown(address: str, folder: Path, *flags: str, width: int = 1280) -> "subprocess.CompletedProcess[str]":
    """Open an address; stdout is the page as the browser has made it, stderr has its messages, CONSOLE before each."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", *flags]
    command += ["--virtual-time-budget=5000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
