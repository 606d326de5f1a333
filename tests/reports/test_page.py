"""The page of a report: every value on it, nothing foreign in it, whatever the names and however many groups."""

import copy
import html.parser
import json
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import example_report
import pytest

from bigvocab import BigvocabError
from bigvocab.reports.numerals import size
from bigvocab.reports.page import page_of

VOID = {"meta", "br", "img", "input", "link", "hr"}
EVIL = "<script>alert(1)</script>\"'&\u202eevil\x00\x1b[31m\u2066\ud800 $x^2$ %s {{ 7 * 7 }}"


class Page(html.parser.HTMLParser):
    """What a browser would make of it: texts, tags with attributes, and a check that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.text = [], [], [], text
        self.feed(text)
        self.close()
        assert not self.open
        self.shown = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.tags or tag not in VOID and self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            raise AssertionError(f"</{tag}> closes {self.open}")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]

    def pictures(self):
        found = re.findall(r"<svg.*?</svg>", self.text, re.DOTALL)
        return [ElementTree.fromstring(svg) for svg in found]


def reports():
    return {
        "evaluation": example_report.evaluation(),
        "candidates": example_report.comparison(),
        "one candidate": example_report.comparison(("candidate",)),
    }


@pytest.fixture(scope="module")
def pages():
    return {name: Page(page_of(report)) for name, report in reports().items()}


def shapes(value):
    """All ways in which the page may show a number."""
    if isinstance(value, int):
        return {f"{value:,}", str(value)}
    found = {
        repr(value),
        f"{value:.6f}",
        f"{value:,.6f}",
        f"{value:.2%}",
        f"{value:.4e}",
        f"{value:.1e}",
        f"{value:.6g}",
    }
    digits = max(0, 4 - math.floor(math.log10(abs(value)))) if value else 0
    return found | {f"{value:,.{digits}f}", f"{value:,.0f}", f"{100 * value:.4g}", f"{value:.1%}"}


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, str(i)))
    else:
        yield path, value


@pytest.mark.parametrize("name", reports())
def test_every_value_is_on_the_page(pages, name):
    words = set(re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?", pages[name].shown))
    words |= {word.rstrip("%,") for word in words}
    for path, value in leaves(reports()[name]):
        # An upper edge is shown less 1, a weight that is the rows is not shown, and empty bins and bins' ends are the
        # neighbours'.
        if path[-1] in ("to", "from", "weight", "code") or path[0] == "infinite" or "edges" in path:
            continue
        if isinstance(value, bool) or value is None or value == 0:
            continue
        if isinstance(value, str):
            assert value in pages[name].shown, path
        elif path[-1] == "bytes" and path[0] == "inputs":
            assert size(value) in pages[name].shown
        else:
            assert shapes(value) & words, (path, value)


def test_sections_stand_in_order(pages):
    assert pages["evaluation"].sections() == [
        "ranking",
        *("loss", "rank", "calibration", "by-frequency", "by-position", "groups", "sampled", "worst", "metrics"),
        *("files", "options", "versions", "all"),
    ]
    assert pages["candidates"].sections()[:7] == [
        *("candidates", "means", "kl", "confidence", "delta-p", "flips", "between"),
    ]


def test_rankings_are_shown_with_their_errors(pages):
    text = pages["evaluation"].text
    assert "NDCG at 10" in text.partition("<main>")[0]
    section = text.partition('id="ranking"')[2].partition("</section>")[0]
    for name in ("recall", "hit rate", "psp"):
        assert name in section
    assert "0.300000 ±\u00a00.009100" in section  # the error over clusters
    assert "0.450000 ±\u00a00.013650" in section
    sampled = text.partition('id="sampled"')[2].partition("</section>")[0]
    assert "0.310000 ±\u00a00.004100" in sampled
    assert "-0.100000 ±\u00a00.001300" in sampled or "−0.100000 ±\u00a00.001300" in sampled


def test_first_screen(pages):
    tiles = pages["evaluation"].text.partition("<main>")[0]
    for value in ("3.419546", "±\u00a00.102455 nats", "24.821", "36.43%", "1.142061", "data/kjv/logits.npy", "12,966"):
        assert value in tiles
    assert example_report.NOTE["text"] in tiles


@pytest.mark.parametrize("name", reports())
def test_pictures_are_read_aloud_and_take_the_colours_of_the_page(pages, name):
    pictures = pages[name].pictures()
    assert len(pictures) >= 5
    ids = [attrs["id"] for _, attrs in pages[name].tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for picture in pictures:
        title, desc = picture[0], picture[1]
        assert picture.get("role") == "img"
        assert picture.get("aria-labelledby").split() == [title.get("id"), desc.get("id")]
        assert title.text
        assert len(desc.text) > 20
        drawn = ElementTree.tostring(picture, encoding="unicode")
        assert not re.search(r"#[0-9a-f]{6}", drawn)
        assert "var(--c1)" in drawn
        assert "name-0" not in drawn
        for link in re.findall(r'(?:href="|url\()#([^")]+)', drawn):
            assert link in ids


@pytest.mark.parametrize("name", reports())
def test_nothing_runs_and_nothing_is_loaded(pages, name):
    page = pages[name]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    policy = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    for tag, attrs in page.tags:
        assert not [key for key in attrs if key.startswith("on")]
        for key in attrs.keys() & {"href", "src", "xlink:href", "action", "data", "poster", "srcset"}:
            assert attrs[key].startswith("#"), (tag, attrs)
    style = page.text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_report_gives_the_same_bytes():
    first, second = page_of(example_report.evaluation()), page_of(example_report.evaluation())
    assert first == second
    through_json = json.loads(json.dumps(example_report.evaluation()))
    assert page_of(through_json) == first


def test_sections_appear_only_with_their_values():
    page = Page(page_of({"schema_version": 1, "loss": "sigmoid", "mean": 1.5, "rows": 2}))
    assert page.sections() == ["metrics", "all"]
    assert "1.500000" in page.shown
    assert not page.pictures()


def test_a_report_without_any_row():
    page = Page(page_of({"schema_version": 1, "loss": "softmax", "mean": None, "rows": 0, "groups": {}}))
    assert "nan nats" in page.shown


def test_infinite_values_are_shown_as_such(pages):
    assert re.search(r"3917 inf 11021", pages["evaluation"].shown)
    report = example_report.evaluation() | {"mean": None, "infinite": {"mean": "inf", "groups.Ruth.mean": "inf"}}
    report["groups"]["Ruth"]["mean"] = None
    page = Page(page_of(report))
    assert "Loss inf ±" in page.shown
    assert re.search(r"group rows mean \(nats\) ± if rows were independent perplexity Ruth \d+ inf", page.shown)
    assert page_of(example_report.evaluation() | {"mean": math.inf}).count("inf") > 1


def test_a_constant_and_a_single_value_can_be_drawn():
    report = example_report.evaluation()
    report["loss_histogram"] = {"edges": [0.0, 0.25, None], "counts": [0, 4]}
    report["rank_histogram"] = {"edges": [1], "counts": [4]}
    report["by_position"] = report["by_position"][:1]
    report["groups"] = {"one": {"rows": 4, "mean": 2.0}}
    assert len(Page(page_of(report)).pictures()) == 7
    same = example_report.comparison(("candidate",))
    for block in (same["kl"], same["kl_reverse"], same["delta_p"]):
        block |= {"mean": 0.0, "max": 0.0, "min": 0.0, "percentiles": dict.fromkeys(block["percentiles"], 0.0)}
    assert "no place on its axis" in page_of(same)


def widen(name):
    """Reports in which names from data are `name`."""
    report = example_report.evaluation()
    report["groups"] = example_report.groups([f"{name}{i}" for i in range(40)])
    for row in report["worst"]:
        row |= {"text": name, "group": name}
    report |= {
        "loss": name,
        "notes": [{"code": name, "text": name}],
        name: {name: 1.5, "list": [name] * 20, "records": [{name: name}] * 2},
    }
    report["inputs"][0] |= {"path": name, "dtype": name}
    report["options"] = report["model"] = report["versions"] = {name: name}
    report["accuracy"] |= {name: 0.25}
    report["sampled"]["sampler"] = name
    yield report
    yield example_report.comparison([f"{name}{i}" for i in range(9)])


@pytest.mark.parametrize("name", [EVIL, EVIL * 200, "x" * 10_000, "\u202e" * 10_000, "字" * 10_000, "", "</style>"])
def test_hostile_names_are_escaped_cut_and_made_visible(name):
    for report in widen(name):
        text = page_of(report)
        text.encode()
        page = Page(text)
        assert not {tag for tag, _ in page.tags} & {"script", "img"}
        ours = re.sub(r"(?<=[±\d])\u00a0", " ", text)  # between a number and its error or unit
        assert not [c for c in ours if not c.isprintable() and c != "\n"]
        assert len(text) < 1_000_000
        assert name[:10] in page.shown or not name[:10].isprintable()
        assert all(len("".join(e.itertext())) < 60 for p in page.pictures() for e in p.iter() if e.tag.endswith("text"))
        assert "&lt;" not in page.shown
        if "\u202e" in name:
            assert "\\u202e" in page.shown
        if "script" in name:
            assert "<script>alert(1)" in page.shown


@pytest.mark.parametrize("count", [20, 21, 10_000, 100_000])
def test_many_groups_are_folded_and_fit(count):
    report = example_report.evaluation() | {
        "groups": example_report.groups([f"document number {i:06}" for i in range(count)])
    }
    text = page_of(report)
    assert len(text.encode()) < 2_000_000
    section = text.partition('<section id="groups"')[2].partition("</section>")[0]
    opened, _, folded = section.partition("<details>")
    assert opened.count('scope="row"') == 20
    shown = folded.count('scope="row"')
    means = sorted((group["mean"] for group in report["groups"].values()), reverse=True)
    assert re.search(r"<td>[\d,]+</td><td>([\d.]+)", opened)[1] == f"{means[0]:.6f}"
    if count <= 10_000:
        assert shown == count - 20
        assert ("more group" in folded) == (count > 20)
        assert "in the report alone" not in section
    else:
        assert f"{count - 20 - shown:,} more groups of lower values are in the report alone" in section


def test_many_of_everything_else_fit():
    report = example_report.evaluation()
    report["inputs"] *= 20_000
    report["worst"] *= 2000
    report["notes"] *= 2000
    report["more"] = {f"value {i}": i for i in range(100_000)}
    assert len(page_of(report)) < 1_500_000
    report = example_report.comparison([str(i) for i in range(300)])
    assert len(page_of(report)) < 2_000_000


def broken():
    def put(path, value, kind="evaluation"):
        report = copy.deepcopy(reports()[kind])
        *parents, last = path.split("/")
        block = report
        for key in parents:
            block = block[int(key)] if isinstance(block, list) else block[key]
        block[last] = value
        return report

    yield [], "report"
    yield {}, "schema_version"
    yield {"schema_version": 1}, "neither loss nor kl"
    yield {"schema_version": 1, "loss": "softmax", "rows": 1}, "mean: missing"
    yield put("schema_version", 99), "newer"
    yield put("schema_version", "1"), "schema_version"
    for path, value in {
        "mean": "3.4",
        "rows": -1,
        "stderr": -0.1,
        "weight": 10**400,
        "accuracy": [0.5],
        "accuracy/1": 36.4,
        "groups": [1],
        "groups/Ruth": 3,
        "groups/Ruth/mean": True,
        "groups/Ruth/rows": 1.5,
        "notes/0/text": 5,
        "inputs/0/path": None,
        "loss_histogram/edges": [3, 2, 1],
        "rank_histogram/edges": [1],
        "rank_histogram/counts": "many",
        "calibration/bins": {},
        "calibration/ece": "low",
        "by_frequency/0/from": None,
        "by_position/0/to": -5,
        "worst/0/row": "first",
        "infinite": {"mean": "large"},
        "versions/numpy": 2,
        "clusters": 7,
        "ranking": [1],
        "ranking/ndcg": 0.5,
        "ranking/ndcg/10": "high",
        "ranking/stderr/ndcg": 0.1,
        "groups/Ruth/ranking": [0.1],
    }.items():
        yield put(path, value), path.replace("/", ".")
    for path, value in {"kl/mean": "x", "kl/percentiles": [1], "flips/to_wrong": 0.5, "by_confidence": 1}.items():
        yield put(path, value, "one candidate"), path.replace("/", ".")
    yield put("candidates/Q8_0/kl", None, "candidates"), "candidates.Q8_0.kl"
    deep = {}
    for _ in range(900):
        deep = {"a": deep}
    yield put("more", deep), "levels"


@pytest.mark.parametrize(("report", "words"), list(broken()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_report_is_one_clear_line(report, words):
    with pytest.raises(BigvocabError) as caught:
        page_of(report)
    message = str(caught.value)
    assert words in message
    assert message.isprintable()
    assert len(message) < 300


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_page_imports_no_picture_library():
    code = "import sys, bigvocab.reports.page; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_what_to_install(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from bigvocab.reports.page import page_of\n"
        "try: page_of({'schema_version': 1, 'loss': 'softmax', 'mean': 1.0, 'rows': 1})\n"
        "except ValueError as error: print(error)"
    )
    assert run(code).strip() == f"the page needs {missing}: pip install 'bigvocab[html]'"


def test_the_users_style_is_left_alone():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red"}):
        page_of(example_report.evaluation())
        assert matplotlib.rcParams["font.size"] == 31
        assert page_of(example_report.evaluation()) == page_of(example_report.evaluation())
        inside = page_of(example_report.evaluation())
    assert inside == page_of(example_report.evaluation())
