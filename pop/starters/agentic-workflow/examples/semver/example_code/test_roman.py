"""Roman numerals."""

import pytest
from roman import parse


@pytest.mark.parametrize(("text", "number"), [("I", 1), ("IV", 4), ("MCMXCIX", 1999), ("MMMCMXCIX", 3999)])
def test_a_numeral_spells_its_number(text: str, number: int) -> None:
    """With subtractions in every place."""
    assert parse(text) == number


@pytest.mark.parametrize("text", ["", "i", "IIII", "IC", "MMMM", "XIV "])
def test_other_texts_are_refused(text: str) -> None:
    """The error holds the text."""
    with pytest.raises(ValueError, match="is no Roman numeral") as caught:
        parse(text)
    assert repr(text) in str(caught.value)
