import dataclasses
from html import parser
import json
import re
import shutil
import subprocess

import pytest

from tflite_export import text_tables
from tflite_export.verification import report as report_lib
from tflite_export.verification import report_html, report_text

EXACT = report_lib.Comparison(
    "y", "FULLY_CONNECTED", "twin", "xnnpack", 50, 0, 0, ((0, 50),), None, 1.0
)
NOISY = report_lib.Comparison(
    "y", "FULLY_CONNECTED", "student", "xnnpack", 50, 5, 2, ((-2, 1), (0, 45), (1, 4)), 31.26, 0.9
)
FIRST = report_lib.Comparison("a<b", "CONV_2D", "student", "xnnpack", 40, 0, 0, ((0, 40),))
SECOND = report_lib.Comparison(
    "c", "ADD", "student", "xnnpack", 40, 10, 1, ((0, 30), (1, 10)), 40.0
)
REPORT = report_lib.Report(
    model="net",
    path="net.tflite",
    bytes=12345,
    images=10,
    tensor_images=4,
    parameters=7,
    operators=(("CONV_2D", "a<b"), ("ADD", "c"), ("FULLY_CONNECTED", "y")),
    outputs=(EXACT, NOISY),
    tensors=(FIRST, SECOND, dataclasses.replace(NOISY, top1=None)),
    float_errors=(
        report_lib.FloatError("c", "add", 21.5),
        report_lib.FloatError("y", "logits", None),
    ),
    accuracy={"student": 0.9, "xnnpack": 0.875},
    notes=("a note",),
    seconds={"xnnpack": 1.5},
    versions={"numpy": "2.4"},
)
FAILED = dataclasses.replace(
    REPORT, failures=(report_lib.Failure("twin", "c", "10 of 40 codes differ"),)
)


def test_text_aligns_columns_and_names_the_first_diverging_tensor():
    text = REPORT.text()
    assert str(REPORT) == text
    assert text.startswith(
        "net: PASSED\nnet.tflite, 12,345 bytes; 7 constant tensors compared, outputs on 10 images"
    )
    assert "first diverging tensor: c" in text
    assert re.search(r"^twin = xnnpack +y +50 +0 +0 +exact +100\.000%$", text, re.M)
    assert re.search(r"^student : xnnpack +y +50 +5 +2 +31\.3 +90\.000%$", text, re.M)
    assert re.search(
        r"^accuracy +student +xnnpack\n-+ +-+ +-+\ntop-1 +90\.00% +87\.50%$", text, re.M
    )
    assert "Note: a note" in text
    table = text_tables.table(("name", "n"), [("a", "1"), ("long name", "100")])
    assert table == "name         n\n---------  ---\na            1\nlong name  100"


def test_a_share_that_is_not_whole_is_not_rounded_to_it():
    assert report_text.percent(1.0) == "100.000%" and report_text.percent(0.0) == "0.000%"
    assert report_text.percent(1 - 1e-7) == ">99.999%" and report_text.percent(1e-7) == "<0.001%"


def test_failures_come_first():
    assert not FAILED.passed and REPORT.passed
    text = FAILED.text()
    assert "FAILED (1 conditions not met)" in text and "  twin: c: 10 of 40 codes differ" in text


def test_who_agrees_with_whom():
    assert REPORT.pairs() == [("twin", "xnnpack"), ("student", "xnnpack")]
    assert REPORT.agreeing() == [("twin", "xnnpack")]
    assert REPORT.output("xnnpack", "student") is NOISY
    assert REPORT.first_diverging("xnnpack", "student") == "c"
    assert REPORT.first_diverging("twin", "xnnpack") is None
    with pytest.raises(KeyError, match="were not compared"):
        REPORT.output("twin", "arm")


def test_json_reads_back_as_the_same_report(tmp_path):
    FAILED.save(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["schema_version"] == 2 and data["passed"] is False
    again = report_lib.Report.from_dict(data)
    assert again == FAILED
    for version in (1, 3, None):
        with pytest.raises(ValueError) as caught:
            report_lib.Report.from_dict({**data, "schema_version": version})
        assert str(caught.value) == (
            f"This report has another schema. Received: schema_version={version}; expected 2."
        )


def test_a_report_with_everything_reads_back_and_cannot_be_changed():
    full = dataclasses.replace(
        FAILED,
        layer_bounds=(report_lib.LayerBound("c", ("ADD", "RELU"), 0.002, 1, 0.01),),
        bounds=(report_lib.OperatorBound("TANH", "xnnpack", 1, 0.01),),
        costs=(report_lib.OperatorCost("c", "CONV_2D", 4, 1234, 5_678_901),),
        output_kinds={"y": "classes"},
    ).with_history({"loss": [1, 0.5]})
    assert full.history == {"loss": (1.0, 0.5)}
    assert report_lib.Report.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.images = 1


def test_saved_json_has_a_line_for_each_entry(tmp_path):
    FAILED.save(tmp_path / "r.JSON")
    lines = (tmp_path / "r.JSON").read_text().splitlines()
    assert lines[:4] == ["{", ' "schema_version": 2,', ' "passed": false,', ' "model": "net",']
    FAILED.save_overlay(tmp_path / "o.json")
    assert (tmp_path / "o.json").read_text().splitlines()[:3] == [
        "{",
        ' "main": {',
        '  "results": {',
    ]
    FAILED.save(str(tmp_path / "r.txt"))
    assert (tmp_path / "r.txt").read_text() == FAILED.text()


class Page(parser.HTMLParser):
    """Collects tags and every address a browser would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        # Links within the drawing start with "#".
        self.addresses += [
            v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")
        ]


def page_of(report, tmp_path):
    report.save(tmp_path / "r.html")
    contents = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(contents)
    return contents, page


def test_html_is_one_page_that_loads_nothing(tmp_path):
    contents, page = page_of(FAILED, tmp_path)
    assert page.addresses == [] and "script" not in page.tags and "link" not in page.tags
    # SQNR and histograms of a pair, and the distance from the float network.
    assert page.tags.count("svg") == 3
    assert "a&lt;b" in contents and "a<b" not in contents
    assert "First diverging tensor: c" in contents and "10 of 40 codes differ" in contents
    assert "width=device-width" in contents and "prefers-color-scheme: dark" in contents


def test_html_begins_with_the_verdict_and_why(tmp_path):
    contents, _ = page_of(REPORT, tmp_path)
    assert contents.index("<span class=passed>passed</span>") < contents.index("accuracy, student")
    assert ": the file is the trained network." in contents
    assert "All 7 constant tensors of the file are the student&#x27;s, bit by bit." in contents
    assert (
        "The integer twin and the file on XNNPACK, as on phones give the same on all 50 output"
        " codes." in contents
    )
    contents, _ = page_of(FAILED, tmp_path)
    assert "<span class=failed>failed</span>: 1 condition is not met." in contents
    assert "A runtime computes other codes than the integer twin." in contents


def test_html_has_accuracy_or_without_labels_how_close_the_file_is(tmp_path):
    labelled = dataclasses.replace(REPORT, accuracy={"float": 0.95, **REPORT.accuracy})
    contents, _ = page_of(labelled, tmp_path)
    for label, number in (("float network", 95), ("student", 90), ("file on a phone", 87.5)):
        assert f"<small>accuracy, {label}</small><b>{number:.2f} %</b>" in contents
    contents, _ = page_of(dataclasses.replace(REPORT, accuracy={}), tmp_path)
    assert "<small>same class</small><b>90.00 %</b>" in contents
    assert "<small>SQNR of y</small><b>31.3 dB</b>" in contents


def test_layers_are_ranked_by_what_is_lost_in_them():
    errors = [
        report_lib.FloatError(name, name, db)
        for name, db in (("a", 40.0), ("b", 25.0), ("exact", None), ("c", 24.0), ("d", 26.0))
    ]
    ranked = [(error.tensor, lost) for error, lost in report_html.losses(errors)]
    assert ranked == [("b", 15.0), ("c", 1.0), ("a", 0.0), ("d", -2.0)]
    assert report_html.losses([]) == []


def test_runtimes_fold_away_in_words(tmp_path):
    contents, page = page_of(REPORT, tmp_path)
    assert page.tags.count("details") == 5  # float tensors, runtimes, a pair, notes, versions
    assert (
        "The student in Keras and the file on XNNPACK, as on phones differ in 10.000% of 50 output"
        " codes, the same class for 90.000% of the images." in contents
    )


def test_sizes_bits_and_curves_are_shown_where_there_are_any(tmp_path):
    cost = report_lib.OperatorCost("c", "CONV_2D", 4, 1234, 5_678_901)
    history = {"loss": [1.0, 0.5], "val_twin_accuracy": [0.7, 0.9]}
    report = dataclasses.replace(REPORT, costs=(cost,)).with_history(history)
    contents, page = page_of(report, tmp_path)
    assert "<small>multiply-adds</small><b>5,678,901</b>" in contents
    assert ">1,234</td>" in contents and "<h2>Training</h2>" in contents
    assert page.tags.count("svg") == 5
    report.save(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert report_lib.Report.from_dict(data) == report
    assert "<h2>Training</h2>" not in page_of(REPORT, tmp_path)[0]


CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


def browse(page, *arguments):
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        + [*arguments, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium-headless-shell)")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_whole_width_and_dark_mode(tmp_path, width):
    image = pytest.importorskip("PIL.Image")
    cost = report_lib.OperatorCost("a_rather_long_name_of_a_tensor", "CONV_2D", 4, 1234, 99)
    contents, _ = page_of(dataclasses.replace(FAILED, costs=(cost,)), tmp_path)
    measure = "document.documentElement.dataset.width = document.documentElement.scrollWidth"
    opened = contents.replace("<details>", "<details open>")
    (tmp_path / "r.html").write_text(
        opened.replace("</body>", f"<script>{measure}</script></body>")
    )
    size = f"--window-size={width},900"
    assert f'data-width="{width}"' in browse(tmp_path / "r.html", size, "--dump-dom")
    papers = []
    for scheme in (1, 0):  # light, dark
        shot = tmp_path / f"{scheme}.png"
        colours = f"--blink-settings=preferredColorScheme={scheme}"
        browse(tmp_path / "r.html", size, colours, f"--screenshot={shot}")
        with image.open(shot) as found:
            assert found.size == (width, 900)
            assert len(found.convert("RGB").getcolors(2**24)) > 50  # something is drawn
            papers.append(found.convert("L").getpixel((width - 3, 3)))
    assert papers[0] > 240 and papers[1] < 40


def test_overlay_has_one_value_per_operator(tmp_path):
    REPORT.save_overlay(tmp_path / "o.json")
    overlay = json.loads((tmp_path / "o.json").read_text())["main"]
    assert overlay["results"] == {"0": {"value": 0.0}, "1": {"value": 0.25}, "2": {"value": 0.1}}
    white, red = "#ffffff", "#d7301f"
    for metric, colours in (
        ("differing", (white, red)),
        ("max_lsb", (white, red)),
        ("sqnr_db", (red, white)),
        ("float_sqnr_db", (red, white)),
    ):
        assert REPORT.overlay(metric)["main"]["gradient"] == [
            {"stop": stop, "bgColor": colour} for stop, colour in enumerate(colours)
        ]
    results = {"1": {"value": 40.0}, "2": {"value": 31.26}}
    assert REPORT.overlay("sqnr_db", "xnnpack", "student")["main"]["results"] == results
    assert REPORT.overlay("sqnr_db", "xnnpack", "twin")["main"]["results"] == {}
    assert REPORT.overlay(right="twin")["main"]["results"] == {}
    assert REPORT.overlay("max_lsb")["main"]["results"]["2"] == {"value": 2}
    assert REPORT.overlay("float_sqnr_db")["main"]["results"] == {"1": {"value": 21.5}}
    with pytest.raises(ValueError) as caught:
        REPORT.overlay("colour")
    assert str(caught.value) == (
        "metric must be one of differing, max_lsb, sqnr_db, float_sqnr_db."
        " Received: metric='colour'."
    )


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="must end in .json, .html or .txt"):
        REPORT.save(tmp_path / "r.pdf")
    with pytest.raises(FileNotFoundError, match="Cannot write the report"):
        REPORT.save(tmp_path / "missing" / "r.json")
    (tmp_path / "r.txt").mkdir()
    with pytest.raises(OSError, match="Cannot write the report"):
        REPORT.save(tmp_path / "r.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.txt"]


def test_an_empty_report_renders(tmp_path):
    empty = report_lib.Report(model="m", path="p", bytes=1)
    empty.save(tmp_path / "e.html")
    assert "PASSED" in empty.text()
    assert report_lib.Report.from_dict(empty.to_dict()) == empty
