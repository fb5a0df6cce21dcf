"""Every test that asks for `row` runs for each quantizer."""

import pytest

from tests.tf_fpq.quantizers.quantizer_rows import ROWS, Row


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request) -> Row:
    return request.param
