"""The parity table that benchmarks/parity.py prints, asserted."""

import importlib.util

import pytest
from conftest import ROOT


def test_nothing_in_the_parity_table_is_farther_from_the_original_than_it_may_be(shared):
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks/parity.py")
    parity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parity)
    found = list(parity.rows(quick=True))
    assert len(found) > 25 and [row for row in found if not row.difference <= row.allowed] == []
    with pytest.raises(SystemExit):
        raise SystemExit(parity.show(iter([parity.Row("x", "", float("nan"), 1.0)])))
