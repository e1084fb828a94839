"""Markdown tables: columns, alignment, and cells that no text can break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturblab.records.markdown import Raw, escape, markdown_table


def test_a_table_in_full() -> None:
    text = markdown_table(["net", "accuracy, %", "seeds"], [["lenet", Raw("**85.06**"), "3"], ["a|*b*", "", "1"]])
    assert text.splitlines() == [
        "| net | accuracy, % | seeds |",
        "|---|---:|---:|",
        "| lenet | **85.06** | 3 |",
        "| a&#124;&#42;b&#42; |  | 1 |",
    ]


@pytest.mark.parametrize(("align", "rule"), [("rl", "|---:|---|"), ("ll", "|---|---|"), ("", "|---|---:|")])
def test_columns_are_aligned_as_asked_for(align: str, rule: str) -> None:
    assert markdown_table(["a", "b"], [], align).splitlines() == ["| a | b |", rule]


@given(st.text())
def test_no_text_makes_a_row_a_column_or_a_tag(text: str) -> None:
    lines = markdown_table(["a", "b"], [[text, "x"]]).splitlines()
    assert len(lines) == 3
    assert lines[2].count("|") == 3
    assert not set("<>`*~\\") & set(lines[2])
    assert "](" not in escape(text)
