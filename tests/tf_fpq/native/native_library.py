"""What tests of the operations need."""

import pytest

from tf_fpq.native import library

needs_native = pytest.mark.skipif(
    library.operations() is None, reason="`python -m tf_fpq.native` has not been run"
)
