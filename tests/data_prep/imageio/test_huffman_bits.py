"""The bits of lossless JPEG, compared with what libjpeg-turbo writes."""

import imagecodecs
import numpy as np
import pytest

from data_prep.imageio import jpeg
from data_prep.imageio.frame import Pixels
from data_prep.imageio.huffman_bits import count_bits, read_code_lengths


def make_noise(rows: int, columns: int, bits: int) -> Pixels:
    """Texture beside a flat background, with the lowest and the highest value."""
    values = np.random.default_rng(0).normal(0.5, 0.1, (rows, columns)).clip(0, 1)
    values[:, columns // 2 :] = 0
    values[0, :2] = 0, 1
    return np.asarray(values * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def read_tables(stream: jpeg.Stream) -> dict[int, Pixels]:
    return read_code_lengths(body for marker, body in stream.tables if marker == jpeg.DHT)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("bits", "shape"), [(8, (40, 31)), (12, (33, 50)), (16, (40, 31)), (12, (2, 1))])
def test_the_bits_are_those_of_the_file_but_for_the_last_byte(
    predictor: int, bits: int, shape: tuple[int, int]
) -> None:
    pixels = make_noise(*shape, bits) if min(shape) > 1 else np.array([[7], [2000]], np.uint16)
    encoded = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)
    stream = jpeg.read_stream(encoded)
    used = count_bits(pixels, read_tables(stream)[0], predictor=predictor, precision=bits)
    start, end = stream.scan
    assert 0 <= 8 * (end - start - stream.num_stuffed) - used < 8


def test_chunks_and_a_point_transform_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_noise(40, 31, 12)
    lengths = np.arange(1, 18)
    whole = count_bits(pixels, lengths, predictor=7, precision=12)
    shifted = count_bits(pixels << 2, lengths, predictor=7, precision=14, point_transform=2)
    monkeypatch.setattr("data_prep.imageio.huffman_bits.CHUNK_PIXELS", 100)
    assert count_bits(pixels, lengths, predictor=7, precision=12) == whole == shifted


def test_a_restart_predicts_as_at_the_beginning() -> None:
    pixels = make_noise(12, 9, 12)
    lengths = np.arange(1, 18)
    parts = [count_bits(part, lengths, predictor=4, precision=12) for part in np.split(pixels, 4)]
    assert count_bits(pixels, lengths, predictor=4, precision=12, rows_per_restart=3) == sum(parts)
