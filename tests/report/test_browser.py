"""The report in a real browser: needs the package playwright and Chromium (apt-get install chromium)."""

import shutil
from pathlib import Path
from runpy import run_path

import pytest
from report_material import EVIL, HOSTILE, hostile, many_arms

from lit_debias.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed", allow_module_level=True)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

CONTRASTS = """() => {
  const channel = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const weights = [0.2126, 0.7152, 0.0722];
  const luminance = (rgb) => weights.reduce((sum, weight, i) => sum + weight * channel(rgb[i] / 255), 0);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const drawing = "script, [aria-hidden]";
  const shown = (element) => own(element) && element.getClientRects().length && !element.closest(drawing);
  const ratio = (element) => {
    const style = getComputedStyle(element);
    const ink = numbers(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [low, high] = [luminance(ink), luminance(behind(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  return [...document.body.querySelectorAll("*")].filter(shown)
    .map((element) => [ratio(element), element.tagName, element.textContent.slice(0, 40)]);
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    many_arms(folder)
    second = tmp_path_factory.mktemp("second")
    many_arms(second)
    return report([str(folder), str(second)])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
        yield context
        context.close()


def load(browser, page_file, width=1280, scheme="light"):
    """Return the page in a tab, and a list that gets what the browser complains about."""
    tab, complaints = browser.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    tab.goto(page_file.as_uri())
    tab.wait_for_function("[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('.main-svg'))")
    return tab, complaints


@pytest.fixture(scope="module")
def desktop(browser, page_file):
    return load(browser, page_file)


@pytest.fixture(scope="module")
def phone(browser, page_file):
    return load(browser, page_file, width=360)


@pytest.fixture(scope="module")
def night(browser, page_file):
    return load(browser, page_file, scheme="dark")


def test_every_figure_is_drawn_and_nothing_complains(desktop):
    tab, complaints = desktop
    charts = tab.locator(".chart")
    assert charts.count() == 6  # trade-off, category, group, reward, rewards by name, KL
    marks = [charts.nth(i).locator(".scatterlayer .point, .scatterlayer .js-line").count() for i in range(6)]
    # trade-off: 40 steps, their front, 9 arms; then 1 category and 2 groups of 3 arms; curves: single steps and mean
    assert marks == [40 + 1 + 9, 3, 6, 2, 4, 2]
    assert complaints == []


def test_model_output_is_text(desktop):
    tab, complaints = desktop
    assert tab.locator("img").count() == 0
    assert tab.locator(".answer", has_text=EVIL).count() > 0
    assert complaints == []  # no dialog either


def test_names_texts_and_settings_run_nothing(browser, tmp_path):
    hostile(tmp_path)
    tab, complaints = load(browser, report([str(tmp_path)]))
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    marks = tab.locator(".chart .point")
    for number in range(marks.count()):  # labels that appear under the pointer are text too
        marks.nth(number).hover(force=True)
    assert complaints == []  # nor anything that the policy had to stop
    assert tab.evaluate("window.owned") is None
    assert tab.locator("img, .chart a, a:not([href^='#'])").count() == 0
    places = [".answer", "h3", ".verdict", "th", ".legend li", "pre", "li", ".chart .xtitle", ".why dd"]
    assert {place: tab.locator(place, has_text=HOSTILE).count() > 0 for place in places} == dict.fromkeys(places, True)
    assert "</script>" in "".join(tab.locator(".chart .ytick").all_text_contents())


def test_keywords_are_marked_in_the_answers_that_are_explained(desktop):
    tab, _ = desktop
    assert set(tab.locator(".pair mark").all_text_contents()) == {"alert"}  # whatever its case
    assert tab.locator(".card:has(.why) .answer").count() == 4  # two of each of the two types
    assert tab.locator(".why dd", has_text="It speaks of <all>.").count() == 4


def test_another_script_would_be_stopped(browser, page_file, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(
        page_file.read_text().replace("<h1>", "<script>window.owned = 1</script><img src=x onerror=alert(1)><h1>")
    )
    tab, complaints = load(browser, changed)
    assert tab.evaluate("window.owned") is None
    assert any("Content Security Policy" in complaint for complaint in complaints)


def test_the_picture_of_the_readme_ends_above_a_heading(browser, page_file, tmp_path):
    draw = run_path(str(Path(__file__).parents[2] / "docs" / "picture.py"))["draw"]
    tab = browser.new_page()
    draw(tab, page_file, tmp_path / "report.png", "measures")
    header = (tmp_path / "report.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = (int.from_bytes(header[place : place + 4], "big") for place in (16, 20))
    assert width == 680
    assert height == pytest.approx(tab.locator("#measures").bounding_box()["y"] - 24, abs=1)
    with pytest.raises(SystemExit, match="no heading 'nowhere'"):
        draw(tab, page_file, tmp_path / "report.png", "nowhere")


def test_links_lead_to_parts_of_the_page(desktop):
    tab, _ = desktop
    links = tab.locator("nav a")
    targets = [links.nth(i).get_attribute("href") for i in range(links.count())]
    assert {"#runs", "#checks", "#measures", "#tradeoff", "#category", "#group", "#twins"} <= set(targets)
    assert {"#reasons", "#training", "#origin"} <= set(targets)
    for target in targets:
        assert tab.locator(f"h2{target}").count() == 1, target
    tab.locator("nav a[href='#origin']").click()
    assert tab.locator("#origin").evaluate("node => node.getBoundingClientRect().top < innerHeight")


CHARTS_FIT = "[...document.querySelectorAll('.chart')].every((c) => c.scrollWidth <= c.clientWidth)"


def test_on_a_phone_every_figure_is_in_sight(phone):
    tab, _ = phone
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tables = tab.locator(".scroll:has(.wide)")
    assert tables.count() == 3  # runs, measures and explanations
    assert tables.evaluate_all("nodes => nodes.every((node) => node.scrollWidth <= node.clientWidth)")
    cell = tab.locator("#measures ~ .scroll td", has_text="52.0").first
    box = cell.bounding_box()
    assert 0 <= box["x"] < box["x"] + box["width"] <= 360
    assert cell.evaluate("node => getComputedStyle(node, '::before').content") == '"GRPO, all <rewards>"'
    assert tab.evaluate(CHARTS_FIT)


def test_a_term_opens_by_touch(phone):
    tab, _ = phone
    term = tab.locator("#measures ~ .scroll .term").first
    assert "a reward model that nothing here was trained on" not in term.inner_text()
    term.locator("summary").click()
    assert "a reward model that nothing here was trained on" in term.inner_text()
    term.locator("summary").click()


def test_only_tables_scroll_sideways_and_show_it(desktop):
    tab, _ = desktop
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280
    table = tab.locator("#measures ~ .scroll").first
    assert table.evaluate("node => node.scrollWidth > node.clientWidth")
    first = table.locator("tbody th[scope=row]").first
    left = first.bounding_box()["x"]
    table.evaluate("node => { node.scrollLeft = 400; }")
    assert first.bounding_box()["x"] == left  # the measure's name stays
    assert tab.evaluate(CHARTS_FIT)
    shown = {}
    for place in (0, 100_000):  # a shadow at the right edge, until there is nothing more to the right
        table.evaluate(f"node => {{ node.scrollLeft = {place}; }}")
        table.evaluate("node => node.scrollIntoView()")
        box = table.bounding_box()
        shown[place] = tab.screenshot(
            clip={"x": box["x"] + box["width"] - 4, "y": box["y"] + 2, "width": 4, "height": 4}
        )
    assert shown[0] != shown[100_000]


@pytest.mark.parametrize(("size", "page"), [("desktop", "rgb(255, 255, 255)"), ("night", "rgb(18, 22, 28)")])
def test_text_can_be_read(request, size, page):
    tab, _ = request.getfixturevalue(size)
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == page
    found = tab.evaluate(CONTRASTS)
    assert {"text", "TD", "SUMMARY", "PRE", "A"} <= {name for _, name, _ in found}
    assert [each for each in found if each[0] < 4.5] == []


def test_it_prints_dark_on_white(night, tmp_path):
    tab, complaints = night
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    tab.evaluate(
        "addEventListener('beforeprint', () => { window.widths = [...document.querySelectorAll('.chart .main-svg')]"
        ".map((svg) => Number(svg.getAttribute('width'))); })"
    )
    tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert 0 < max(tab.evaluate("window.widths")) <= 690  # A4 within its margins
    assert tab.evaluate("[...document.querySelectorAll('details:not(.brief)')].every((part) => part.open)")
    assert tab.locator("#measures ~ .scroll .term[open]").count() > 5
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('.chart text')).fill") == "rgb(28, 36, 48)"
    assert complaints == []
