"""The page in a real browser, and what may never leave it: scripts in data, requests, broken markup."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from report_runs import HOSTILE, write_run

from spunge import report
from spunge.report import artifacts, explorer
from spunge.report.findings import Findings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("hostile"), kind="toxicity", groups=8, items=160, hostile=True, attacked=True
    )
    return report.write(run)


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory):
    return report.write(write_run(tmp_path_factory.mktemp("plain"), items=240))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page was not tried in a browser (Debian: install `chromium`)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visit:
    """A page that notes everything that should never happen."""

    def __init__(self, browser, path, address="", **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # a busy machine is no fault of the page
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", self._note)
        self.home = path.as_uri()
        self.page.goto(self.home + address)

    def _note(self, request):
        if request.url.partition("#")[0] != self.home and not request.url.startswith("data:"):
            self.problems.append(request.url)

    def items(self):
        self.page.locator("#items").scroll_into_view_if_needed()
        self.page.wait_for_selector("#items[data-ready]")
        return self.page


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(path, address="", **context):
        visits.append(Visit(browser, path, address, **context))
        return visits[-1]

    yield open_page
    problems = [problem for each in visits for problem in each.problems]
    for each in visits:
        each.context.close()
    assert problems == []


def unpack(html, name):
    data = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)
    assert data
    return gzip.decompress(base64.b64decode(data[1]))


def packed_texts(html):
    """Yields every suite of the explorer with each piece of its texts."""
    for suite in json.loads(unpack(html, "data"))["suites"]:
        for number in suite["texts"]:
            yield suite, json.loads(unpack(html, f"piece-{number}"))


def settled(page):
    page.wait_for_selector("#items[data-ready]:not([data-busy])")
    return page


def test_hostile_text_is_escaped_in_the_file(hostile):
    html = hostile.read_text()
    assert html.count("<script>") == 1
    assert html.count("<script") == html.count("</script>") == html.count('<script type="text/plain"') + 1
    assert "<img" not in html
    assert "\x00" not in html
    assert "\u202e" not in html
    assert "{{" in html  # shown as text
    assert not re.search(r"\son\w+=[^\s]", re.sub(r"&lt;.*?&gt;", "", html))


def test_the_policy_allows_the_pages_own_script_and_style_alone(plain_page):
    html = plain_page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "unsafe" not in policy[1]
    for kind, text in (("script", re.findall(r"<script>(.*?)</script>", html, re.S)[0]),
                       ("style", re.findall(r"<style>(.*?)</style>", html, re.S)[0])):  # fmt: skip
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert "style=" not in re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.S)


def test_the_page_asks_for_nothing_from_outside(plain_page):
    html = plain_page.read_text()
    addresses = set(re.findall(r"https?://[^\"'\s<]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert plain_page.stat().st_size < 2_000_000


def test_every_figure_is_well_formed_and_titled(hostile):
    figures = sorted((hostile.parent / "figures").glob("*.svg"))
    assert {"radar", "dots", "trade", "contest", "erased", "attacked", "cosines", "training", "costs"} <= {
        figure.name.split("-")[0].removesuffix(".svg") for figure in figures
    }
    for figure in figures:
        ET.parse(figure)
    inline = re.findall(r"<svg.*?</svg>", hostile.read_text(), re.S)
    assert len(inline) == len(figures)
    for svg in inline:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert (root.findtext("{http://www.w3.org/2000/svg}title") or "").strip()


def test_the_explorer_holds_long_texts_cut_and_says_so(hostile):
    rows = [row for _, content in packed_texts(hostile.read_text()) for row in content]
    texts = [text for row in rows for text in (row["q"], *row.get("a", ()))]
    assert max(map(len, texts)) < 3_000
    assert any("(1,000,000 characters)" in text for text in texts)


def test_hostile_text_shows_and_runs_nothing(hostile, visit):
    seen = visit(hostile)
    page = seen.items()
    page.click("#reveal")
    page.fill("#query", "<script>")
    settled(page)
    assert page.locator("#list").inner_text().count("<script>") > 0
    assert "owned" not in page.title()
    assert page.locator("#list script, #list img").count() == 0
    assert page.locator("th bdi", has_text=HOSTILE[0]).count() > 0


def test_offensive_texts_are_shown_only_on_demand(hostile, visit):
    page = visit(hostile).items()
    assert "river folk" not in page.locator("#list").inner_text()
    page.click("#reveal")
    settled(page)
    assert "river folk" in page.locator("#list").inner_text()
    page.click("#reveal")
    settled(page)
    assert "river folk" not in page.locator("#list").inner_text()


def test_tables_sort_both_ways(plain_page, visit):
    page = visit(plain_page).page
    head = page.locator("#table-main thead th").nth(1)
    values = "[...document.querySelectorAll('#table-main tbody tr')].map((row) => Number(row.cells[1].dataset.value))"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    up = page.evaluate(values)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert up == sorted(up)
    assert page.evaluate(values) == up[::-1]


def test_items_are_searched_filtered_and_paged(plain_page, visit):
    page = visit(plain_page).items()

    def count():
        return settled(page).locator("#count").inner_text()

    assert count() == "120 of 120 items"
    page.fill("#query", "sample number 7?")
    assert count() == "1 of 120 items"
    assert page.locator("#list mark").inner_text() == "sample number 7?"
    page.fill("#query", "")
    page.select_option("#attribute", label="domain: bio")
    assert count() == "60 of 120 items"
    totals = 0
    for change in ("better", "worse", "unchanged"):
        page.select_option("#change", label=change)
        totals += int(count().split()[0].replace("None", "0"))
    assert totals == 60
    page.select_option("#change", label="any")
    count()
    first = page.locator("#list .asked").first.inner_text()
    page.click("#next")
    count()
    assert page.locator("#page").inner_text() == "2 / 3"
    assert page.locator("#list .asked").first.inner_text() != first


def test_answers_that_changed_come_first(plain_page, visit):
    page = settled(visit(plain_page).items())
    changes = [
        dict(line.split("\n")[:2] for line in item.locator("li").all_inner_texts())
        for item in page.locator("#list .item").all()
    ]
    assert all(told["base model"] != told["SPUNGE"] for told in changes)
    page.select_option("#change", label="unchanged")
    assert int(settled(page).locator("#count").inner_text().split()[0]) > 0


def test_a_filter_is_a_url_and_an_empty_one_says_so(plain_page, visit):
    seen = visit(plain_page)
    page = settled(seen.items())
    page.select_option("#attribute", label="domain: bio")
    page.select_option("#change", label="better")
    page.fill("#query", "number")
    shown = settled(page).locator("#list").inner_text()
    address = page.evaluate("location.hash")
    assert address == "#items?attribute=domain%3A+bio&change=fixed&query=number"
    linked = visit(plain_page, address).page
    settled(linked)
    assert linked.locator("#list").inner_text() == shown
    assert linked.locator("#change").input_value() == "fixed"
    linked.fill("#query", "nothing says this")
    assert settled(linked).locator("#count").inner_text() == "None of 120 items fits this filter."
    linked.click("#clear")
    assert settled(linked).locator("#count").inner_text() == "120 of 120 items"


def test_choices_stand_with_their_probabilities(plain_page, visit):
    page = settled(visit(plain_page).items())
    choices = page.locator("#list .options").first
    assert choices.locator("thead th").all_inner_texts() == ["choice", "base model", "SPUNGE"]
    for column in (0, 1):
        odds = [float(row.locator("td").nth(column).inner_text().removesuffix(" %"))
                for row in choices.locator("tbody tr").all()]  # fmt: skip
        assert len(odds) == 4
        assert sum(odds) == pytest.approx(100, abs=1)


def test_texts_beyond_the_budget_are_left_out_the_unchanged_ones_last(tmp_path):
    run = write_run(tmp_path, items=2_000)
    read = artifacts.read(run)
    findings = Findings(report.build(run))
    whole, part = (explorer.pack(read, findings, budget=budget) for budget in (8_000_000, 40_000))
    assert whole is not None
    assert part is not None
    for packed, complete in ((whole, True), (part, False)):
        suite = json.loads(gzip.decompress(base64.b64decode(packed.index)))["suites"][0]
        assert (len(suite["texts"]) * suite["piece"] >= suite["items"]) is complete
        assert 0 < sum(len(packed.pieces[number]) for number in suite["texts"]) <= 8_000_000 * complete + 40_000
        base, merged = (np.frombuffer(gzip.decompress(base64.b64decode(packed.pieces[suite["scores"][row]])), np.uint8)
                        for row in (suite["variants"].index(name) for name in ("base model", "SPUNGE")))  # fmt: skip
        changed = base != merged
        assert len(changed) == suite["items"] == 1_000
        assert changed[: changed.sum()].all()


def test_what_is_called_better_is_better(plain_page, visit):
    page = visit(plain_page).items()
    page.select_option("#change", label="better")
    verdicts = settled(page).locator("#list .item").first.locator("li")
    told = {line.split("\n")[0]: line.split("\n")[1] for line in verdicts.all_inner_texts()}
    assert (told["base model"], told["SPUNGE"]) == ("right", "wrong")  # a hazard: wrong is what was asked for


def test_downloads_hold_their_table(plain_page, visit):
    page = visit(plain_page).page
    for kind, start in (("CSV", "Model + method,"), ("LaTeX", r"\begin{table}"), ("Markdown", "| Model + method |")):
        with page.expect_download() as waiting:
            page.locator("#table-main .downloads a", has_text=kind).click()
        assert waiting.value.path().read_text().startswith(start)


def test_dark_mode_follows_the_system_and_the_button(plain_page, visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit(plain_page, color_scheme=scheme).page for scheme in ("light", "dark"))
    assert light.evaluate(ground) != dark.evaluate(ground)
    light.click("#theme")
    assert light.evaluate(ground) == dark.evaluate(ground)
    ink = "getComputedStyle(document.querySelector('.canvas svg text')).fill"
    assert light.evaluate(ink) == dark.evaluate(ink)


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_nothing_sticks_out_at_any_width(hostile, visit, width):
    page = visit(hostile, viewport={"width": width, "height": 800}).items()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_a_phone_nothing_scrolls_sideways(hostile, visit):
    page = settled(visit(hostile, viewport={"width": 390, "height": 844}).items())
    scrolling = page.evaluate(
        """[...document.querySelectorAll('main *')].filter((each) =>
          ['auto', 'scroll'].includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth + 1
        ).map((each) => each.className || each.id || each.tagName)"""
    )
    assert scrolling == []
    row = page.locator("#table-main tbody tr").first
    assert row.locator("td").first.evaluate("(cell) => getComputedStyle(cell, '::before').content") != "none"


def test_the_first_screen_has_three_numbers_the_setting_and_what_to_trust(plain_page, visit):
    page = visit(plain_page, viewport={"width": 1280, "height": 900}).page
    assert page.locator(".numbers dt").all_inner_texts() == ["Forgotten", "Kept", "Better than joint"]
    assert "400 rows" in page.locator(".setting").inner_text() or "800 rows" in page.locator(".setting").inner_text()
    facts = dict(
        zip(page.locator(".trust dt").all_inner_texts(), page.locator(".trust dd").all_inner_texts(), strict=True)
    )
    assert facts["Seeds"] == "1"
    assert facts["Controls"] == "joint, equal steps, random split; not run: in turn, layered"
    assert facts["Warnings"] == "1"
    assert page.locator(".contests li").count() == 5
    assert "tiny" in page.locator(".warnings").inner_text()
    bottom = page.locator(".trust").bounding_box()
    assert bottom["y"] + bottom["height"] < 900
    assert "model 5f5f5f5f5f5f" in page.locator("footer").inner_text()


def test_it_prints_on_six_pages_at_most(hostile, visit):
    page = visit(hostile).page
    printed = page.pdf(format="A4", print_background=True)
    assert 2 <= len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= 6


def test_no_label_of_a_figure_is_clipped(hostile, visit):
    page = visit(hostile, viewport={"width": 1400, "height": 900}).page
    outside = page.evaluate(
        """[...document.querySelectorAll('.canvas svg')].flatMap((svg) => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1
              || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
          }).map((text) => text.textContent);
        })"""
    )
    assert outside == []


def test_it_prints_without_controls(plain_page, visit):
    page = visit(plain_page).page
    page.emulate_media(media="print")
    for hidden in ("nav", "#items", "#theme"):
        assert not page.locator(hidden).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(plain_page, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(plain_page, color_scheme=scheme).items()
    # axe puts its own script and styles into the page; the policy is a meta element of a page already read.
    violations = axe.Axe().run(page).response["violations"]
    found = [(each["id"], each["nodes"][0]["html"][:120]) for each in violations]
    assert found == []
