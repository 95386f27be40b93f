"""Pictures: budget, orientation, transparency, and every way a file can be bad."""

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visloop.chat.images import MAX_DECLARED_PIXELS, encode_data_url, load_image
from visloop.errors import DataError


def save(path: Path, size: tuple[int, int] = (40, 20), color: str = "red", **options: object) -> Path:
    Image.new("RGB", size, color).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


def test_picture_inside_the_budget_keeps_size_and_pixels(tmp_path: Path) -> None:
    picture = load_image(save(tmp_path / "a.png"), max_pixels=800)
    assert (picture.mode, picture.size, picture.getpixel((39, 19))) == ("RGB", (40, 20), (255, 0, 0))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), most=st.integers(1, 3000), least=st.integers(1, 500))
def test_any_picture_ends_inside_the_budget(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, most: int, least: int
) -> None:
    path = save(tmp_path_factory.mktemp("p") / "a.png", (width, height))
    least = min(least, most)
    picture = load_image(path, max_pixels=most, min_pixels=least)
    pixels = picture.width * picture.height
    thin = max(width, height) / min(width, height)
    if width * height > most:
        assert pixels <= max(most, thin * most / min(most, width * height))  # a side of at least one pixel
        assert picture.width <= width and picture.height <= height
    elif width * height < least:
        assert pixels >= least
    else:
        assert picture.size == (width, height)


def test_scaling_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    assert load_image(save(tmp_path / "a.png", (400, 200)), max_pixels=20_000).size == (200, 100)
    assert load_image(save(tmp_path / "b.png", (10, 5)), max_pixels=9999, min_pixels=200).size == (20, 10)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(save(tmp_path / "a.jpg", (40, 20), exif=exif), max_pixels=9999).size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 2, 4))
    picture.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", max_pixels=99)
    assert loaded.mode == "RGB"
    assert loaded.getpixel((3, 0)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) == (0, 0, 0)


def test_missing_picture_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: the picture cannot be read \(No such file"):
        load_image(tmp_path / "nowhere.png", max_pixels=99)


def test_folder_is_not_a_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        load_image(tmp_path, max_pixels=99)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 not a jpeg"])
def test_garbage_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: "):
        load_image(tmp_path / "bad.png", max_pixels=99)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_picture_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, format=kind)
    data = buffer.getvalue()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut: "):
        load_image(tmp_path / "cut", max_pixels=9999)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_DECLARED_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png: the picture declares"):
        load_image(tmp_path / "bomb.png", max_pixels=99)


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", color="red")
    first = load_image(path, max_pixels=999)
    assert load_image(path, max_pixels=999) is first
    save(path, color="blue", size=(41, 20))
    assert load_image(path, max_pixels=999).getpixel((0, 0)) == (0, 0, 255)


def test_data_url_passes_a_jpeg_through_and_scales_the_rest(tmp_path: Path) -> None:
    jpeg = save(tmp_path / "a.jpg")
    head, data = encode_data_url(jpeg, max_pixels=800).split(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == jpeg.read_bytes()
    for path, size in ((save(tmp_path / "large.jpg", (80, 40)), (40, 20)), (save(tmp_path / "b.bmp"), (40, 20))):
        head, data = encode_data_url(path, max_pixels=800).split(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == size
