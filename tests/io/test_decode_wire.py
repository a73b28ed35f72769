import pytest

from capfilt.io.decode_wire import (
    ImageLimits,
    Inspected,
    Kind,
    is_expected,
    pack_inspected,
    refuse,
    unpack_small,
)
from capfilt.records import Reason


def test_a_detail_is_made_one_short_printable_line():
    refused = refuse(Reason.IMAGE_UNREADABLE, "red\x1b[31m\nalert \x00" + "!" * 300)
    assert refused.detail == ("red [31m alert " + "!" * 300)[:200]


def inspected(width_px: int, height_px: int) -> bytes:
    return pack_inspected(
        Inspected(image_format="PNG", width_px=width_px, height_px=height_px, phash=2**64 - 1)
    )


def answer_bodies():
    yield Kind.INSPECTED, b""
    yield Kind.INSPECTED, bytes(16) + b"PDF"
    yield Kind.REFUSED, b"no_such_reason\ndetail"
    yield Kind.REFUSED, b"\xff\xff"
    yield Kind.READY, b""
    yield Kind.INSPECTED, inspected(2**32 - 1, 1)
    yield Kind.INSPECTED, inspected(1, 8193)
    yield Kind.INSPECTED, inspected(0, 1)


@pytest.mark.parametrize(("kind", "body"), list(answer_bodies()))
def test_an_answer_no_honest_child_sends_is_not_believed(kind, body):
    with pytest.raises(ValueError):
        unpack_small(kind, body, ImageLimits())


def test_sizes_at_the_limits_are_believed():
    limits = ImageLimits(min_side_px=3, max_side_px=9)
    assert unpack_small(Kind.INSPECTED, inspected(9, 3), limits).width_px == 9
    with pytest.raises(ValueError, match="9 x 2 px should have been refused"):
        unpack_small(Kind.INSPECTED, inspected(9, 2), limits)


@pytest.mark.parametrize(
    ("kind", "num_bytes", "side_px"),
    [(Kind.PIXELS, 47, 4), (Kind.PIXELS, 48, None), (Kind.INSPECTED, 20, 4), (9, 1, 4)],
)
def test_an_answer_that_was_not_asked_for_is_not_read(kind, num_bytes, side_px):
    assert is_expected(Kind.PIXELS, 48, side_px=4)
    assert not is_expected(kind, num_bytes, side_px=side_px)
