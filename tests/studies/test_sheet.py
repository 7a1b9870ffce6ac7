"""The contact sheet: each picture in its place, the patch outlined, what is missing marked."""

from __future__ import annotations

from PIL import Image

from pullback.studies.sheet import Block, Strip, sheet

RED, GREEN, BLUE, YELLOW = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def block(name: str) -> Block:
    strips = [
        Strip("own", plain(RED), {"a": plain(GREEN), "b": plain(BLUE, (300, 150))}),
        Strip("pasted", plain(YELLOW), {"a": plain(GREEN), "b": None}, box=(0.25, 0.25, 0.75, 0.75)),
    ]
    return Block(name, strips)


def order(image: Image.Image) -> list[tuple[int, int, int]]:
    """Full colours in the order in which a reader meets them, row by row."""
    found: list[tuple[int, int, int]] = []
    for y in range(0, image.height, 3):
        for x in range(image.width):
            colour = image.getpixel((x, y))
            if colour in (RED, GREEN, BLUE, YELLOW) and colour not in found[-3:]:
                found.append(colour)
    return found


def test_pictures_stand_in_the_order_of_the_columns_and_strips() -> None:
    made = sheet("Stage 1", "words", {"a": "method a", "b": "method b"}, [block("x.jpg")])
    assert order(made) == [RED, GREEN, BLUE, YELLOW]


def test_the_patch_is_outlined_in_every_picture_of_its_strip() -> None:
    made = sheet("Stage 1", "words", {"a": "method a", "b": "method b"}, [block("x.jpg")])
    outline = sum(n for n, colour in made.getcolors(2**24) or [] if colour == (230, 30, 30))
    assert outline == 2 * 4 * (99 - 33)


def test_each_image_and_each_method_adds_its_room() -> None:
    one, two = (sheet("Stage 1", "words", {"a": "a", "b": "b"}, [block(str(i)) for i in range(n)]) for n in (1, 2))
    narrow = sheet("Stage 1", "words", {"a": "a"}, [block("0")])
    assert two.height > one.height + 2 * 132
    assert one.width == narrow.width + 138
