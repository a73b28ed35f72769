"""What is asked about images, checked where a slip would give wrong answers that nobody sees."""

from __future__ import annotations

from collections.abc import Sequence, Sized


def check_lists(asked: Sequence[Sequence[str]], of: Sized, *, what: str, each: str) -> None:
    """Check that there is one list of texts for each image.

    Args:
        asked: the lists, in the order of the images.
        of: the images, or whatever the texts are about.
        what: of the texts, such as "texts".
        each: of one thing they are about, such as "image".

    Raises:
        ValueError: there are more or fewer lists, or a bare text stands for a list: its letters
            would be taken for texts.
    """
    for index, texts in enumerate(asked):
        if isinstance(texts, str):
            raise ValueError(
                f"{what}[{index}] is the text {texts!r}; {what} holds a list for each {each}, "
                f"such as [{texts!r}]"
            )
    if len(asked) != len(of):
        raise ValueError(f"{len(asked)} lists of {what} were given for {len(of)} {each}s")
