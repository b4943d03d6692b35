"""What the tests of all families draw and compare."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

ROWS = 3
logps = arrays(float, ROWS, elements=st.floats(-200, -0.01))
rewards = arrays(float, ROWS, elements=st.floats(-20, 20))
pairs = st.tuples(logps, logps, logps, logps)
lengths = st.tuples(*[arrays(int, ROWS, elements=st.integers(1, 50))] * 2)
betas = st.floats(0.01, 3)
smoothing = st.floats(0, 0.5)


def close(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-9)


def margin(pair):
    return (pair[0] - pair[2]) - (pair[1] - pair[3])
