"""The examples run as the tests do: on eight CPU devices, with their compile cache."""

import tests.conftest  # noqa: F401
