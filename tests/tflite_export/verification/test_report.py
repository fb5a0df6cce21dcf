import dataclasses
from html import parser
import json
import re

import pytest

from tflite_export import text_tables
from tflite_export.verification import report as report_lib
from tflite_export.verification import report_text

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
    with pytest.raises(ValueError, match="schema_version=1; expected 2"):
        report_lib.Report.from_dict({**data, "schema_version": 1})


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


def test_html_is_one_page_that_loads_nothing(tmp_path):
    FAILED.save(tmp_path / "r.html")
    contents = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(contents)
    assert page.addresses == [] and "script" not in page.tags and "link" not in page.tags
    # Share of codes, SQNR, histograms, and the distance from the float network.
    assert page.tags.count("svg") == 4
    assert "a&lt;b" in contents and "a<b" not in contents
    assert (
        "First diverging tensor: <code>c</code>" in contents and "10 of 40 codes differ" in contents
    )
    REPORT.save(tmp_path / "passed.html")
    assert "<span class=passed>passed</span>" in (tmp_path / "passed.html").read_text()


def test_overlay_has_one_value_per_operator(tmp_path):
    REPORT.save_overlay(tmp_path / "o.json")
    overlay = json.loads((tmp_path / "o.json").read_text())["main"]
    assert overlay["results"] == {"0": {"value": 0.0}, "1": {"value": 0.25}, "2": {"value": 0.1}}
    assert [stop["stop"] for stop in overlay["gradient"]] == [0, 1]
    assert REPORT.overlay("max_lsb")["main"]["results"]["2"] == {"value": 2}
    assert REPORT.overlay("float_sqnr_db")["main"]["results"] == {"1": {"value": 21.5}}
    with pytest.raises(ValueError, match="metric must be one of"):
        REPORT.overlay("colour")


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
