"""Headless Chromium for the tests of pages: asks a page a question and hears its complaints."""

import html
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
PROBE = """<script>addEventListener("load", () => {
  const answer = document.createElement("pre");
  answer.id = "probe-answer";
  answer.textContent = JSON.stringify(%s);
  document.body.append(answer);
})</script>"""


def print_page(page: Path, folder: Path) -> list[int]:
    """Returns how many pieces of text stand on each sheet that a page is printed on."""
    out, profile = folder / "printed.pdf", f"--user-data-dir={folder / 'profile'}"
    command = [find_chromium(), *OPTIONS, profile, "--no-pdf-header-footer", f"--print-to-pdf={out}"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    content, counts = out.read_bytes(), []
    for sheet in re.findall(rb"/Type /Page\b.*?/Contents ([0-9]+) 0 R", content, re.DOTALL):
        stream = re.search(rb"\n%b 0 obj.*?stream\r?\n(.*?)endstream" % sheet, content, re.DOTALL)
        assert stream
        text = zlib.decompressobj().decompress(stream[1])
        counts.append(len(re.findall(rb"T[jJ]\b", text)))
    return counts


class Opened(NamedTuple):
    """What a page answered, and the console's lines: errors, warnings and whatever it logged."""

    answer: Any
    console: list[str]


def find_chromium() -> str:
    """Returns Chromium's path; skips the test where there is none."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)} is found")
    return chromium


def photograph(page: Path, folder: Path, *, is_dark: bool = False, size: str = "1000,900") -> Path:
    """Returns a PNG of what a page shows at first, in light or dark mode."""
    out = folder / f"{'dark' if is_dark else 'light'}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [find_chromium(), *OPTIONS, profile, scheme, f"--window-size={size}", f"--screenshot={out}"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    return out


def open_page(page: Path, question: str, folder: Path, *, width: int = 1000) -> Opened:
    """Opens a copy of a page and returns the value of a JavaScript expression once all has loaded.

    Skips the test where there is no Chromium. `folder` takes the copy and the browser's profile. Below 500 px
    Chromium keeps its window 500 px wide.
    """
    copy = folder / "probed.html"
    copy.write_text(page.read_text("utf-8") + PROBE % question, "utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [find_chromium(), *OPTIONS, profile, f"--window-size={width},900", "--dump-dom", copy.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r'<pre id="probe-answer">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert answer, f"the page did not load: {ended.stderr}"
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return Opened(json.loads(html.unescape(answer[1])), console)
