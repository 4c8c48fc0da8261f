"""The weight gradient of a thousand drawn convolutions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tract import check_any_convolution


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_weight_gradient_of_any_convolution(data):
    check_any_convolution(data)
