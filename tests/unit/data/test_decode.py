"""Decoding: PIL's pixels and PIL's errors, whoever decodes."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from deit_tract.common.errors import UserError
from deit_tract.data.sets import decode
from deit_tract.data.sets.decode import Decoded
from deit_tract.data.sets.images import Folders
from deit_tract.data.sets.tars import Tars


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def folder(tmp_path, files: dict[str, bytes]) -> Folders:
    (tmp_path / "class").mkdir()
    for name, data in files.items():
        (tmp_path / "class" / name).write_bytes(data)
    return Folders(tmp_path, "RGB")


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "JPEG"} | options)
    return file.getvalue()


def smooth(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return noise((5, 4)).resize(size, Image.Resampling.BICUBIC).convert(mode)


def test_jpegs_decode_to_pils_pixels(tmp_path):
    pytest.importorskip("simplejpeg")
    files = {
        f"{width}x{height}_{quality}_{subsampling}_{progressive}.jpg": encoded(
            smooth((width, height)),
            quality=quality,
            subsampling=subsampling,
            progressive=progressive,
        )
        for width, height in [(1, 1), (17, 33), (120, 90)]
        for quality in (30, 95)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    }
    images = folder(tmp_path, files)
    assert all(decode.decode_jpeg(images.open(index)) is not None for index in range(len(images)))
    for index, (array, label) in enumerate(map(Decoded(images).__getitem__, range(len(images)))):
        assert label == 0 and (array == np.array(images[index][0])).all()


def odd_files() -> dict[str, bytes]:
    grey, photo = smooth((40, 30), "L"), smooth((40, 30))
    tall = bytearray(encoded(smooth((8, 8)), subsampling=2))
    frame = tall.index(b"\xff\xc0")
    tall[frame + 11] = 0x14  # luma's sampling, 1 x 4 in place of 2 x 2: as many blocks
    return {
        "4_4_1.jpg": bytes(tall),
        "cmyk.JPEG": encoded(photo.convert("CMYK")),
        "gif.gif": encoded(photo, format="GIF"),
        "grey.jpg": encoded(grey),
        "png_in_disguise.JPEG": encoded(photo, format="PNG"),
        "rest_behind.jpg": encoded(photo) + b"more",
        "rgb.jpg": encoded(photo, keep_rgb=True),
    }


def test_what_is_no_usual_jpeg_is_pils(tmp_path):
    images = folder(tmp_path, odd_files())
    pixels = Decoded(images)
    for index in range(len(images)):
        assert (pixels[index][0] == np.array(images[index][0])).all(), images.name(index)


def test_broken_files_are_pils_errors(tmp_path):
    whole = encoded(smooth((200, 150)))
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    files = {
        "a_damaged.jpg": bytes(damaged),
        "b_cut.jpg": whole[:-300],
        "c_empty.jpg": b"",
        "d_text.jpg": b"hello",
    }
    images = folder(tmp_path, files)
    pixels = Decoded(images)
    assert (pixels[0][0] == np.array(images[0][0])).all(), "what PIL makes of it"
    for index in (1, 2, 3):
        with pytest.raises(UserError, match=images.name(index)):
            pixels[index]


def test_without_simplejpeg_pil_decodes(tmp_path, monkeypatch):
    images = folder(tmp_path, {"a.jpg": encoded(smooth((40, 30)))})
    expected = Decoded(images)[0][0]
    monkeypatch.setattr(decode, "simplejpeg", None)
    pixels = Decoded(images)
    assert not pixels.direct and (pixels[0][0] == expected).all()


def test_greyscale_recipes_and_sets_in_memory_decode_with_pil(tmp_path):
    images = folder(tmp_path, {"a.jpg": encoded(smooth((40, 30)))})
    images.mode = "L"
    assert (Decoded(images)[0][0] == np.array(images[0][0])).all() and Decoded(images)[0][
        0
    ].ndim == 2

    class Held(Folders):
        def __getitem__(self, index: int):
            return noise((9, 9)), 1

    assert (Decoded(Held(tmp_path, "RGB"))[0][0] == np.array(noise((9, 9)))).all()
    plain = [(noise((8, 8)), 3)]
    assert (Decoded(plain)[0][0] == np.array(plain[0][0])).all() and len(Decoded(plain)) == 1


def test_a_tar_is_decoded_in_place(tmp_path):
    folder(tmp_path, {"a.jpg": encoded(smooth((40, 30)))})
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "class", "class")
    images = Tars(tmp_path / "train.tar", "RGB")
    assert (Decoded(images)[0][0] == np.array(images[0][0])).all()


def test_photos_decode_to_pils_pixels(real_images):
    photos = Folders(real_images("imagenet_samples_256.tar") / "train", "RGB")
    pixels = Decoded(photos)
    for index in range(0, 1000, 10):
        array, label = pixels[index]
        image, expected = photos[index]
        assert label == expected and (array == np.array(image)).all()
