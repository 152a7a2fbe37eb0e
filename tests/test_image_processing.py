"""ABMImageProcessor: the field's images pass untouched, other pictures of the same writing come back close to them."""

import base64
import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

from abm_hf.image_loading_abm import ImageInputWarning
from abm_hf.image_processing_abm import ABMImageProcessor, ImageInputError
from abm_hf.ink.strokes import Ink
from abm_hf.synthetic.picture_kinds import BLANKS, KINDS, draw_blank, draw_kind

PROCESSOR = ABMImageProcessor()
RNG = np.random.default_rng(0)

# "2x + z = b", a fraction bar, "4": pen strokes in field px, letters 28 px high.
STROKES = [
    [(0, 6), (6, 0), (14, 4), (12, 12), (0, 28), (16, 28)],
    [(24, 4), (42, 28)],
    [(42, 4), (24, 28)],
    [(54, 15), (74, 15)],
    [(64, 5), (64, 25)],
    [(84, 2), (102, 2), (84, 28), (104, 28)],
    [(114, 11), (132, 11)],
    [(114, 20), (132, 20)],
    [(144, 0), (144, 28), (156, 26), (158, 18), (146, 16)],
    [(0, 42), (158, 42)],
    [(84, 54), (74, 72), (92, 72)],
    [(87, 60), (86, 84)],
]


def drawn(scale: float = 1.0, pen: float = 3.0, margin: int = 40) -> np.ndarray:
    """The strokes with a round pen of `pen` px, ink 255 on 0, anti-aliased, at any scale."""
    size = (round(84 * scale) + 2 * margin, round(158 * scale) + 2 * margin)
    large = np.zeros((size[0] * 4, size[1] * 4), np.uint8)
    for stroke in STROKES:
        points = np.rint((np.array(stroke) * scale + margin) * 4).astype(np.int32)
        for start, end in itertools.pairwise(points):
            cv2.line(large, start.tolist(), end.tolist(), 255, max(1, round(pen * 4)))
    return cv2.resize(large, size[::-1], interpolation=cv2.INTER_AREA)


def crohme_style() -> np.ndarray:
    """The strokes as the field draws ink: one-pixel lines dilated by 3 x 3, 255 on 0, 13 px from the edge."""
    image = np.zeros((84 + 26, 158 + 26), np.uint8)
    for stroke in STROKES:
        cv2.polylines(image, [np.array(stroke, np.int32) + 13], False, 255, 1)
    return cv2.dilate(image, np.ones((3, 3), np.uint8))


FIELD = crohme_style()


def processed(picture: object, **options: object) -> np.ndarray:
    """What the model sees of one picture, `uint8`, without padding."""
    return np.asarray(PROCESSOR(picture, return_intermediate=True, **options)["intermediate"][0]["processed"])


def agreement(image: np.ndarray, reference: np.ndarray = FIELD) -> float:
    """The lesser of precision and recall of the ink, to within 1 px, after scaling to the reference's size."""
    image = cv2.resize(image, reference.shape[::-1], interpolation=cv2.INTER_AREA) > 127
    target, square = reference > 127, np.ones((3, 3), np.uint8)
    near_target = cv2.dilate(target.astype(np.uint8), square) > 0
    near_image = cv2.dilate(image.astype(np.uint8), square) > 0
    return min((image & near_target).sum() / max(image.sum(), 1), (target & near_image).sum() / target.sum())


def assert_field_like(image: np.ndarray, lowest: float = 0.95) -> None:
    """Binary, with the field's margins, about the field's size and pen, and the same writing."""
    assert set(np.unique(image)) == {0, 255}
    left, top, width, height = cv2.boundingRect(image)
    assert (left, top, image.shape[1] - left - width, image.shape[0] - top - height) == (12, 12, 11, 11)
    assert image.shape[0] / FIELD.shape[0] == pytest.approx(1, abs=0.2)
    assert agreement(image) >= lowest
    # Twice the ink's area for its outline's length: the width of the pen. Both forms measured alike.
    pen_widths = [2 * np.count_nonzero(picture) / np.count_nonzero(outline(picture)) for picture in (image, FIELD)]
    assert pen_widths[0] == pytest.approx(pen_widths[1], abs=1.2)


def outline(image: np.ndarray) -> np.ndarray:
    return cv2.morphologyEx(image, cv2.MORPH_GRADIENT, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) & image


# --- the field's form ---


@pytest.mark.parametrize("picture", [FIELD, 255 - FIELD, np.stack([FIELD] * 3, -1), FIELD > 0, FIELD / 255.0])
def test_crohme_style_passes_bit_for_bit(picture: np.ndarray) -> None:
    assert np.array_equal(processed(picture), FIELD)


def test_crohme_style_in_other_margins_keeps_its_pixels() -> None:
    assert np.array_equal(processed(np.pad(FIELD, ((0, 90), (7, 200)))), FIELD)
    assert np.array_equal(processed(FIELD[12:-11, 12:-11]), FIELD)


def test_output_is_padded_values_and_mask() -> None:
    batch = PROCESSOR([FIELD, FIELD[:70].copy()], do_normalize=False)
    assert batch.pixel_values.dtype == torch.float32 and batch.pixel_mask.dtype == torch.int64
    assert batch.pixel_values.shape == (2, 1, 128, 192) and batch.pixel_mask.shape == (2, 128, 192)
    assert torch.equal(batch.pixel_values[0, 0, :110, :184] * 255, torch.from_numpy(FIELD).float())
    for mask, height in zip(batch.pixel_mask, (110, 70), strict=True):
        assert mask[:height, :184].all() and mask.sum() == height * 184
    assert batch.pixel_values[1, 0, 70:].sum() == 0


def test_padding_options() -> None:
    assert PROCESSOR(FIELD, pad_to_multiple_of=(1, 1)).pixel_values.shape == (1, 1, 110, 184)
    assert PROCESSOR(FIELD, pad_size={"height": 200, "width": 300}).pixel_mask.shape == (1, 200, 300)
    unpadded = PROCESSOR([FIELD, drawn(2)], do_pad=False, return_tensors="np")
    assert [value.shape[1:] == mask.shape for value, mask in zip(*unpadded.values(), strict=True)] == [True, True]
    assert PROCESSOR(FIELD, return_tensors="np").pixel_values.max() == 1
    assert PROCESSOR(FIELD, do_rescale=False).pixel_values.max() == 255


def test_do_normalize_false_takes_pixels_as_they_are() -> None:
    picture = RNG.integers(0, 256, (40, 60), np.uint8)
    values = PROCESSOR(picture, do_normalize=False).pixel_values
    assert torch.equal((values[0, 0, :40, :60] * 255).round().to(torch.uint8), torch.from_numpy(picture))


# --- pictures of other sizes, pens and polarity ---


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.5, 5.0])
@pytest.mark.parametrize("pen", [3.0, 6.0])
def test_size_does_not_matter(scale: float, pen: float) -> None:
    if scale < 1 and pen > 3:
        pytest.skip("strokes run into one another")
    assert_field_like(processed(255 - drawn(scale, pen * scale)))


@pytest.mark.parametrize(("scale", "pen"), [(3, 1), (10, 1), (5, 35)])
def test_pen_does_not_matter(scale: float, pen: float) -> None:
    assert_field_like(processed(255 - drawn(scale, pen)), lowest=0.93)


def test_polarity_is_found() -> None:
    dark_on_light = processed(255 - drawn(2, 7))
    assert np.array_equal(processed(drawn(2, 7)), dark_on_light)
    slate = np.uint8(40) + drawn(2, 7) // np.uint8(2)
    assert agreement(processed(slate), dark_on_light) > 0.98


@pytest.mark.parametrize("colour", [(0, 0, 255), (255, 0, 0), (255, 220, 0), (120, 120, 120)])
def test_colour_of_the_ink_does_not_matter(colour: tuple[int, int, int]) -> None:
    ink = drawn(2, 7)[..., None] / 255
    assert_field_like(processed(np.rint(255 * (1 - ink) + np.array(colour) * ink).astype(np.uint8)))


def test_ink_as_bright_as_its_paper_is_found_by_its_colour() -> None:
    ink = drawn(2, 7)[..., None] / 255
    red, green = np.array([200, 0, 0]), np.array([0, 102, 0])  # the same brightness
    assert_field_like(processed(np.rint(green * (1 - ink) + red * ink).astype(np.uint8)))


def test_pixel_budget_bounds_the_result() -> None:
    image = processed(255 - drawn(4, 12), max_pixels=12_000)
    assert 10_000 < image.size <= 12_000
    assert agreement(image[12:-11, 12:-11], FIELD[12:-11, 12:-11]) > 0.9
    assert processed(FIELD, max_pixels=10_000).size <= 10_000


@pytest.mark.parametrize("strokes", [[[(40, 40), (140, 42)]], [[(40, 40), (41, 41)]], [[(50, 20), (50, 180)]]])
def test_lone_bars_and_dots_come_out_small(strokes: list[list[tuple[int, int]]]) -> None:
    picture = np.full((200, 200), 255, np.uint8)
    for stroke in strokes:
        cv2.polylines(picture, [np.array(stroke, np.int32)], False, 0, 6)
    image = processed(picture)
    assert max(image.shape) <= 100 and image.any()


# --- photographs ---


def photographed(
    rules: str = "", darkness: float = 0.8, tilt: float = 0.0, shade: bool = False, noise: float = 4.0
) -> np.ndarray:
    """Ink on paper, three times the field's size, in uneven light, out of focus, noisy and compressed."""
    ink = drawn(3, 9, margin=80) / 255
    height, width = ink.shape
    printed = np.zeros((2 * height, 2 * width), np.uint8)
    for place in range(30, 2 * max(height, width), 75):
        if rules:
            cv2.line(printed, (0, place), (2 * width, place), 255, 2, cv2.LINE_AA)
        if rules == "squared":
            cv2.line(printed, (place, 0), (place, 2 * height), 255, 2, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((width, height), tilt, 1)
    printed = cv2.warpAffine(printed, turn, (2 * width, 2 * height))[height // 2 :, width // 2 :][:height, :width]
    paper = np.minimum(1 - darkness * ink, 1 - 0.4 * printed / 255.0)
    y, x = np.mgrid[0:height, 0:width]
    light = 230 * (1 - 0.35 * x / width - 0.2 * y / height) * np.where(shade & (x > 0.6 * width), 0.6, 1)
    picture = cv2.GaussianBlur(paper * light, (0, 0), 1.2) + np.random.default_rng(1).normal(0, noise, ink.shape)
    jpeg = cv2.imencode(".jpg", np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shade": True},
        {"darkness": 0.3},
        {"noise": 12.0},
        {"rules": "ruled"},
        {"rules": "ruled", "tilt": 1.5},
        {"rules": "ruled", "shade": True},
        {"rules": "squared"},
        {"rules": "squared", "tilt": -1.0},
    ],
    ids=str,
)
def test_photographs(options: dict[str, object]) -> None:
    assert_field_like(processed(photographed(**options)), lowest=0.93)


def test_fraction_bars_and_equals_signs_are_no_ruled_paper() -> None:
    """Not even where the picture is cut so tightly that they run from edge to edge."""
    cut = drawn(3, 9, margin=4)
    assert agreement(processed(255 - cut)) > 0.93
    equals = np.full((60, 120), 255, np.uint8)
    equals[15:22] = equals[40:47] = 0
    assert cv2.connectedComponents(processed(equals))[0] == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"phone", "finger"}))
def test_kinds_of_pictures(kind: str, seed: int) -> None:
    """What else is in the picture goes, what is faint stays, and every letter keeps its place."""
    picture = draw_kind(kind, Ink(STROKES), np.random.default_rng(seed))
    image = processed(Image.fromarray(picture))
    if kind in ("desk", "ruled with margin"):  # some of the perspective and of the tilt remains
        assert cv2.connectedComponents(image)[0] == cv2.connectedComponents(FIELD)[0]
        assert agreement(image) > 0.7
    else:
        assert_field_like(image, 0.85 if kind == "thumbnail" else 0.9)


# The others show something: blocks, a bright patch, a finger.
@pytest.mark.parametrize("kind", sorted(BLANKS.keys() - {"jpeg 10", "glare", "board", "finger"}))
def test_paper_without_a_formula_is_refused(kind: str) -> None:
    with pytest.raises(ImageInputError, match="no ink"):
        PROCESSOR(draw_blank(kind, np.random.default_rng(0)))


@pytest.mark.parametrize("margin", [3, 12])
def test_small_grey_crops_are_read(margin: int) -> None:
    """As people cut them from photographs: 100 px wide, a third of it ink, less than half as dark as black."""
    ink = drawn(0.6, 2.5, margin)
    picture = 140 - 0.25 * ink + np.random.default_rng(0).normal(0, 3, ink.shape)
    jpeg = cv2.imencode(".jpg", picture.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    assert_field_like(processed(jpeg.tobytes()), 0.85)


def test_a_strip_is_searched_in_full() -> None:
    strip = np.full((60, 28_800), 255, np.uint8)
    ink = drawn(0.6, 2, margin=2)
    strip[2 : 2 + ink.shape[0], 9_000 : 9_000 + ink.shape[1]] -= ink[:58]
    assert_field_like(processed(strip), 0.85)


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_one_ruled_line_under_the_writing_goes(noise: float) -> None:
    ink = drawn(2, 6, margin=30)
    ink[-16:-13] = 200
    picture = np.clip(235 - 0.8 * ink + np.random.default_rng(0).normal(0, noise, ink.shape), 0, 255)
    assert_field_like(processed(picture.astype(np.uint8)))


def test_a_solid_bar_is_no_sheet_of_paper() -> None:
    picture = np.zeros((90, 200), np.uint8)
    picture[30:60, 20:180] = 255
    assert processed(picture).any()


# --- what Pillow can open ---


def on_white(image: np.ndarray) -> Image.Image:
    return Image.fromarray(255 - image)


def transparent(colour: int, hidden: int) -> Image.Image:
    """Ink of one grey on a transparent ground, whose invisible colour is `hidden`."""
    ink = drawn(2, 7)
    grey = np.where(ink > 0, colour, hidden).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, grey, grey, ink]))


def transparent_palette() -> Image.Image:
    picture = Image.fromarray((drawn(2, 7) > 127).astype(np.uint8), mode="P")
    picture.putpalette([255, 255, 255, 250, 250, 250])  # light ink; the ground is transparent
    picture.info["transparency"] = 0
    return picture


KINDS: dict[str, Callable[[], Image.Image]] = {
    "grey": lambda: on_white(drawn(2, 7)),
    "RGB": lambda: on_white(drawn(2, 7)).convert("RGB"),
    "one bit": lambda: on_white(drawn(2, 7)).convert("1", dither=Image.Dither.NONE),
    "palette": lambda: on_white(drawn(2, 7)).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    "CMYK": lambda: on_white(drawn(2, 7)).convert("RGB").convert("CMYK"),
    "16 bits": lambda: Image.fromarray((255 - drawn(2, 7)).astype(np.uint16) * 257),
    "32 bits": lambda: on_white(drawn(2, 7)).convert("I"),
    "float": lambda: on_white(drawn(2, 7)).convert("F"),
    "LA, opaque": lambda: on_white(drawn(2, 7)).convert("LA"),
    "dark on transparent black": lambda: transparent(0, 0),
    "dark on transparent white": lambda: transparent(20, 255),
    "light on transparent black": lambda: transparent(255, 0),
    "light on transparent white": lambda: transparent(255, 255),
    "grey and alpha": lambda: transparent(230, 230).convert("LA"),
    "light on transparent palette": transparent_palette,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_modes(kind: str, tmp_path: Path) -> None:
    picture = KINDS[kind]()
    assert_field_like(processed(picture))
    if picture.mode not in ("CMYK", "F", "I"):
        path = tmp_path / "picture.png"
        picture.save(path)
        assert_field_like(processed(path))


def test_opaque_paper_within_transparency_stays_paper() -> None:
    """A screenshot with transparent corners: the corners are no ink."""
    rgba = np.dstack([255 - drawn(2, 7)] * 3 + [np.full_like(drawn(2, 7), 255)])
    rgba[:20, :20] = rgba[-20:, -20:] = 0
    assert_field_like(processed(rgba))


def test_exif_rotation(tmp_path: Path) -> None:
    path, exif = tmp_path / "phone.jpg", Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise to show
    on_white(drawn(2, 7)).rotate(90, expand=True).save(path, exif=exif, quality=95)
    assert_field_like(processed(path))


def test_sources_give_the_same_result(tmp_path: Path) -> None:
    grey = 255 - drawn(2, 7)
    path = tmp_path / "picture.png"
    Image.fromarray(grey).save(path)
    rgb = np.stack([grey] * 3, -1)
    sources = [
        path,
        str(path),
        path.read_bytes(),
        Image.fromarray(grey),
        grey,
        grey[..., None],
        grey[None],
        rgb,
        rgb.transpose(2, 0, 1),
        np.dstack([rgb, np.full_like(grey, 255)]),
        grey.astype(np.uint16) * 257,
        grey.astype(np.int64),
        grey / 255,
        grey.astype(np.float32),
        torch.from_numpy(grey),
        torch.from_numpy(rgb).permute(2, 0, 1) / 255,
        torch.from_numpy(grey / 255).bfloat16(),
        grey / 127.5 - 1,
        grey.astype(np.int32),
        {"bytes": path.read_bytes(), "path": None},  # as data sets store pictures
        {"bytes": None, "path": str(path)},
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    ]
    expected = processed(grey)
    for source in sources:
        assert agreement(processed(source), expected) > 0.99
    batch = PROCESSOR([*sources[:3], [grey, grey]])
    assert batch.pixel_values.shape[0] == 5 and (batch.pixel_values == batch.pixel_values[0]).all()
    assert PROCESSOR(torch.from_numpy(np.stack([rgb, rgb])).permute(0, 3, 1, 2)).pixel_values.shape[0] == 2


@pytest.mark.parametrize("most", [1, 255])
def test_floats_that_resizing_has_overshot(most: int) -> None:
    """Bicubic resizing leaves the range at edges; the picture must not be taken for one of another range."""
    grey = (255 - drawn(2, 7)) / np.float32(255 / most)
    resized = cv2.resize(grey, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    assert resized.min() < 0 and resized.max() > most
    assert agreement(processed(resized), processed(np.clip(resized, 0, most))) > 0.99


def test_an_icon_is_read_at_its_largest_size() -> None:
    stream = io.BytesIO()
    Image.fromarray(255 - drawn(1.2)).resize((256, 256)).save(stream, "ICO", sizes=[(16, 16), (256, 256), (32, 32)])
    assert PROCESSOR(stream.getvalue(), do_normalize=False, pad_to_multiple_of=(1, 1)).pixel_values.shape[2:] == (
        256,
        256,
    )


def test_further_pages_are_told(tmp_path: Path) -> None:
    pages = [Image.fromarray(255 - drawn(1.2)), Image.fromarray(255 - drawn(2))]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(ImageInputWarning, match=r"scan.tif: 2 pages, of which the first is read"):
        found = processed(tmp_path / "scan.tif")
    assert agreement(found, processed(pages[0])) > 0.99


def test_tensors_of_other_libraries() -> None:
    """Known by their axes and by `__array__`, though they can be iterated over as well."""

    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.ndim = array, array.ndim

        def __array__(self, *arguments: object, **options: object) -> np.ndarray:
            return self.array

        def __iter__(self) -> Iterator[np.ndarray]:
            return map(Foreign, self.array) if self.ndim == 4 else iter(self.array)

    assert (processed(Foreign(FIELD)) == processed(FIELD)).all()
    assert PROCESSOR(Foreign(np.stack([FIELD[..., None]] * 2))).pixel_values.shape[0] == 2
    stream = io.BytesIO()
    Image.fromarray(FIELD).save(stream, "PNG")
    assert (processed(memoryview(stream.getvalue())) == processed(FIELD)).all()


def test_a_path_may_begin_with_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(FIELD).save(tmp_path / "a.png")
    for path in ("~/a.png", Path("~/a.png")):
        assert (processed(path) == processed(FIELD)).all()
    with pytest.raises(ImageInputError, match=r"^~b.png: No such file"):
        PROCESSOR("~b.png")


def test_collections_of_every_kind() -> None:
    pictures = [FIELD, 255 - FIELD, FIELD]
    encoded = [Image.fromarray(picture) for picture in pictures]
    rows = datasets.Dataset.from_dict({"image": encoded}).cast_column("image", datasets.Image())
    collections = [
        tuple(pictures),
        (picture for picture in pictures),
        rows["image"],
        rows[:3]["image"],
        rows.to_iterable_dataset()["image"],
        KeyDataset(rows, "image"),
        rows.cast_column("image", datasets.Image(decode=False))["image"],
        pandas.Series(encoded, index=[3, 1, 2]),
    ]
    expected = PROCESSOR(pictures).pixel_values
    for collection in collections:
        assert torch.equal(PROCESSOR(collection).pixel_values, expected), type(collection)
    for row in (rows[0], rows):
        with pytest.raises(ImageInputError, match=r"a row with the columns image is no picture: .* row\['image'\]"):
            PROCESSOR(row)


def test_channel_order_can_be_said() -> None:
    strip = np.full((3, 90, 3), 255, np.uint8)
    strip[:, 40:50] = 0
    with pytest.raises(ImageInputError, match="90 x 3 px is too small"):
        PROCESSOR(strip)
    with pytest.raises(ImageInputError, match="3 x 90 px is too small"):
        PROCESSOR(strip, input_data_format="channels_first")


# --- bad input ---


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


def jpeg_bytes() -> bytes:
    stream = io.BytesIO()
    on_white(drawn(2, 7)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"not a picture", "not an image"),
        (b"", "not an image"),
        (b"%PDF-1.7", "a PDF, export its page as PNG"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIC picture, save it as PNG or JPEG"),
        (b"<?xml version='1.0'?><svg/>", "an SVG"),
        (b"<ink><trace>1 2</trace></ink>", "InkML, which abm_hf.recognize"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (jpeg_bytes()[:-2000], "damaged image file"),
        (png_header(100, 100), "damaged image file"),
        (png_header(20_000, 20_000), "over 50 megapixels"),
        (png_header(10_000, 9_000), "10000 x 9000 px is over 50 megapixels"),
        (np.zeros((8_000, 7_000), np.uint8), "over 50 megapixels"),
        (np.zeros((1, 1), np.uint8), "1 x 1 px is too small: each side needs 8 px"),
        (np.zeros((400, 7), np.uint8), "7 x 400 px is too small"),
        (np.full((90, 90), 255, np.uint8), "no ink"),
        (np.zeros((90, 90, 3), np.uint8), "no ink"),
        (Image.new("RGBA", (90, 90), (9, 9, 9, 0)), "no ink"),
        (np.zeros((5, 90, 90, 90)), "is no picture"),
        (np.zeros((90, 90, 5)), "is no picture"),
        (np.zeros((0, 90)), "is no picture"),
        (np.full((90, 90), np.nan), "not all finite"),
        (np.random.default_rng(0).normal(size=(90, 90)), r"not normalised ones; \(a - a.min\(\)\) / "),
        (
            np.full((90, 90), -(2**24), np.int32),
            r"pass 0..1, 0..255 or 0..65535, .* makes an array of them that is read",
        ),
        ("data:image/png;base64," + "AAAA" * 1000, r"^data:image/png;base64,AAAAAAAA…: not an image"),
        ("data:image/png;base64,A", "damaged base64"),
        ("data:text/plain,x", "is read where it is base64"),
        (np.full((90, 90), "a"), "is no picture"),
        (None, "NoneType is no picture"),
        ([], "empty list"),
        ("https://example.org/formula.png", "download the picture"),
    ],
)
def test_bad_input_gives_one_line(source: object, message: str) -> None:
    with pytest.raises(ImageInputError, match=message) as caught:
        PROCESSOR(source)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_bad_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("x = 1", encoding="utf-8")
    for path, reason in ((text, "not an image"), (tmp_path / "gone.png", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ImageInputError, match=reason) as caught:
            PROCESSOR([FIELD, path])
        assert caught.value.name == str(path) and str(path) not in caught.value.reason
    with pytest.raises(ImageInputError, match=r"^picture 1: no ink"):
        PROCESSOR([FIELD, np.full((90, 90), 255, np.uint8)])


@pytest.mark.parametrize("noise", [2.0, 10.0])
def test_blank_paper_in_uneven_light_has_no_ink(noise: float) -> None:
    light = np.linspace(120, 240, 400)[None] * np.linspace(1, 0.7, 300)[:, None]
    blank = np.clip(light + np.random.default_rng(0).normal(0, noise, light.shape), 0, 255).astype(np.uint8)
    with pytest.raises(ImageInputError, match="no ink"):
        PROCESSOR(blank)


def test_limits_are_options() -> None:
    small = np.full((6, 40), 255, np.uint8)
    small[2:4, 5:35] = 0
    assert PROCESSOR(small, min_side=4).pixel_mask.any()
    with pytest.raises(ImageInputError, match=r"over 0\.01 megapixels"):
        PROCESSOR(FIELD, max_megapixels=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_normalise": False}, "did you mean 'do_normalize'"),
        ({"component_hight": 20.0}, "did you mean 'component_height'"),
        ({"do_resize": True}, "do_resize has no effect"),
        ({"image_mean": [0.5]}, "image_mean has no effect"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PROCESSOR(FIELD, **options)


@pytest.mark.parametrize("options", [{"margin": 0}, {"component_height": 1}, {"pad_to_multiple_of": [32]}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ABMImageProcessor(**options)


def test_intermediate_steps_are_shown() -> None:
    steps = PROCESSOR([255 - drawn(2, 7), FIELD], return_intermediate=True)["intermediate"]
    assert [sorted(step) for step in steps] == [["ink", "processed", "read"], ["processed", "read"]]
    assert steps[0]["read"].size == steps[0]["ink"].size == drawn(2, 7).shape[::-1]
    assert np.array_equal(np.asarray(steps[1]["processed"]), FIELD)


def test_save_and_load(tmp_path: Path) -> None:
    processor = ABMImageProcessor(component_height=20, pad_to_multiple_of=[16, 16], max_pixels=9_000)
    processor.save_pretrained(tmp_path)
    loaded = ABMImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    picture = 255 - drawn(2, 7)
    assert torch.equal(loaded(picture).pixel_values, processor(picture).pixel_values)
    assert processor(picture).pixel_values.shape != PROCESSOR(picture).pixel_values.shape


# --- CROHME ---


def published(archive: Path, count: int) -> list[np.ndarray]:
    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.endswith(".bmp"))
        chosen = names[:: max(1, len(names) // count)]
        return [np.asarray(Image.open(io.BytesIO(images.read(name)))) for name in chosen]


def test_published_images_pass_bit_for_bit(crohme_offline: Path) -> None:
    for image in published(crohme_offline, 400):
        assert np.array_equal(processed(image), image)


@pytest.mark.parametrize("scale", [0.4, 2.5])
def test_published_images_of_another_size_come_back(crohme_offline: Path, scale: float) -> None:
    agreements, sizes = [], []
    for image in published(crohme_offline, 40):
        size = tuple(round(side * scale) for side in image.shape[::-1])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        result = processed(255 - cv2.GaussianBlur(cv2.resize(image, size, interpolation=interpolation), (0, 0), 0.5))
        agreements.append(agreement(result, image))
        sizes.append(result.shape[0] / image.shape[0])
    assert np.mean(agreements) > 0.93
    assert np.median(sizes) == pytest.approx(1, abs=0.1)


def test_margins_must_leave_room_for_ink() -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        ABMImageProcessor(margin=100, max_pixels=1024)
