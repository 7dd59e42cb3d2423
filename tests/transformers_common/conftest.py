"""Knows the marks that transformers puts on its own tests."""

import pytest

UPSTREAM_MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config: pytest.Config) -> None:
    for name in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{name}: set by transformers' own tests")
