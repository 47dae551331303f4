"""How fast the page of a large run is: opening it, and searching its items, in headless Chromium.

    .venv/bin/python benchmarks/report_page.py [ITEMS]

Needs Chromium and the `playwright` package. The aim, at 20,000 items: open in under 2 s, search in under 100 ms.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from playwright.sync_api import sync_playwright
from report_runs import write_run  # pyright: ignore[reportMissingImports]

from spunge import report

QUERIES = ("river folk, number 77", "bread", "a", "nothing says this", "vile (7)")


def main(items: int = 20_000) -> None:
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place), kind="toxicity", groups=5, items=items)
        began = time.process_time()
        page = report.write(run)
        print(f"{items} items, written in {time.process_time() - began:.1f} CPU s, {page.stat().st_size / 1e6:.2f} MB")
        with sync_playwright() as driver:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            opened = [measure(browser, page) for _ in range(5)]
            browser.close()
    loads, readies, searches = (sorted(values) for values in zip(*opened, strict=True))
    print(f"page opened in {statistics.median(loads):.2f} s (worst {loads[-1]:.2f})")
    print(f"items ready {statistics.median(readies):.2f} s after they come into view (worst {readies[-1]:.2f})")
    print(f"slowest search {statistics.median(searches):.0f} ms (worst {searches[-1]:.0f})")


def measure(browser, path: Path) -> tuple[float, float, float]:
    page = browser.new_page()
    began = time.perf_counter()
    page.goto(path.as_uri())
    opened = time.perf_counter() - began
    began = time.perf_counter()
    page.evaluate("document.getElementById('items').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#items[data-ready]", timeout=60_000)
    ready = time.perf_counter() - began
    times = []
    for query in QUERIES:
        page.fill("#query", query)
        times.append(float(page.evaluate("document.getElementById('items').dataset.milliseconds")))
    page.close()
    return opened, ready, max(times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
