"""A mark for tests of the kernels for CPUs."""

import pytest

from rationalyst_jax.lm.cpu import library

needs_compiler = pytest.mark.skipif(
    library.kernel("products.cc", "rows_products", "float32") is None, reason="no C++ compiler"
)
