"""What a parent accepts from a reward process."""

import pytest

from gvm_ray.rewards.sandbox_messages import (
    MAX_DETAIL_CHARACTERS,
    MAX_PACKET_BYTES,
    Scored,
    Started,
    Unscored,
    decode_result,
    decode_started,
    encode,
    printable,
)


@pytest.mark.parametrize(
    "message",
    [
        Scored(reward=-0.1),
        Scored(reward=1e308, terms={"exact": 5e-324, "": 0.0, "Ω": 1.0}),
        Unscored(reason="error", detail='"\\\n'),
        Unscored(reason="memory"),
    ],
)
def test_results_come_back_as_they_were(message: Scored | Unscored):
    assert decode_result(encode(message)) == message


def test_reports_come_back_as_they_were():
    for report in (Started(), Started(failure="user", detail="no such module")):
        assert decode_started(encode(report)) == report


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x80\x04N.",
        b"\xff\xfe",
        b"null",
        b"1.0",
        b"[]",
        b"[" * 60_000,
        b"{}",
        b'{"reward": 1',
        b'{"reward": 1} {"reward": 1}',
        b'{"reward": "1"}',
        b'{"reward": true}',
        b'{"reward": null}',
        b'{"reward": NaN}',
        b'{"reward": Infinity}',
        b'{"reward": 1e999}',
        b'{"reward": 1, "kind": "x"}',
        b'{"reward": 1, "reason": "error"}',
        b'{"reward": 1, "terms": {"exact": "1"}}',
        b'{"reward": 1, "terms": [1]}',
        b'{"reason": "evil"}',
        b'{"reason": "error", "detail": 5}',
        b'{"reason": "error", "detail": "\\ud800"}',
        b'{"reason": "error", "detail": "' + b"x" * (MAX_DETAIL_CHARACTERS + 1) + b'"}',
    ],
)
def test_what_is_no_result_is_refused(packet: bytes):
    with pytest.raises(ValueError, match=r"validation error"):
        decode_result(packet)


def test_a_report_is_no_result_nor_a_result_a_report():
    with pytest.raises(ValueError, match=r"validation error"):
        decode_result(encode(Started()))
    with pytest.raises(ValueError, match=r"validation error"):
        decode_started(encode(Scored(reward=1.0)))


def test_terms_too_long_for_a_packet_are_an_error():
    terms = {f"term {index}": 1.0 for index in range(10_000)}
    result = decode_result(encode(Scored(reward=1.0, terms=terms)))
    assert isinstance(result, Unscored)
    assert result.reason == "error"
    assert "bytes of JSON" in result.detail


def test_the_longest_detail_fits_a_packet():
    worst = printable("\U0010ffff" * MAX_DETAIL_CHARACTERS + "\U0001f600" * MAX_DETAIL_CHARACTERS)
    packet = encode(Unscored(reason="error", detail=worst))
    assert len(packet) <= MAX_PACKET_BYTES
    assert decode_result(packet) == Unscored(reason="error", detail=worst)


def test_printable_escapes_what_a_terminal_obeys():
    assert printable("a\x1b[2J\u202e\ud800\r\nß") == "a\\x1b[2J\\u202e\\ud800\\r\nß"
    result = decode_result(b'{"reason": "error", "detail": "\\u001b[2J"}')
    assert result == Unscored(reason="error", detail="\\x1b[2J")
