"""Lines of text and their cells."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake.mapped import cells_of
from lake.mapping import Mapping
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

_CHARACTERS = st.one_of(st.sampled_from('a,;"\r\n\t \0'), st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def by_delimiter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping]:
    registry = TypeRegistry(tmp_path_factory.mktemp("types"))
    note = registry.register({"name": "Note", "version": 1, "type": "object", "properties": {}})
    return {
        one: Mapping(note, "delimited", one, (), "app", "{who}", "{$line}", "at", None, ()) for one in ",;\t"
    }


@given(text=st.text(_CHARACTERS, max_size=20), delimiter=st.sampled_from(",;\t"))
@example(text="", delimiter=",")
@example(text="a" * 131_073, delimiter=",")
@example(text="a\rb", delimiter=",")
def test_a_line_has_the_cells_that_a_reader_of_csv_finds(
    by_delimiter: dict[str, Mapping], text: str, delimiter: str
) -> None:
    """Also where it is plain enough to be split without one."""
    try:
        found = next(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        assert cells_of(by_delimiter[delimiter], text.encode()) == Flaw("malformed_csv")
    else:
        assert cells_of(by_delimiter[delimiter], text.encode()) == found
