"""`pullback explain` on all that can be wrong with its input: the right result, or one clear line and exit status 2."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from oracles.command import SPEC, Run, bytes_in, outputs, picture, record, saved
from PIL import Image
from safetensors.torch import save_file

import pullback.explain.recipe
import pullback.explain.run
from pullback.cli.progress import Progress
from pullback.errors import StageError
from pullback.inversion import Correctors

# ---- pictures -----------------------------------------------------------------------------------------------------


def sixteen_bits() -> str:
    grey = (np.arange(40 * 36, dtype=np.uint16) * 45).reshape(36, 40)
    return saved("grey16.png", Image.fromarray(grey))


def palette() -> str:
    made = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return saved("palette.png", made, transparency=3)


def transparent() -> str:
    made = picture().convert("RGBA")
    made.putalpha(Image.linear_gradient("L").resize(made.size))
    return saved("rgba.png", made)


def animated() -> str:
    first, *others = (picture(seed=n) for n in range(3))
    return saved("animated.gif", first, save_all=True, append_images=others)


def bomb() -> str:
    """The header of a PNG of 30000 x 30000 pixels, and a few of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    return bytes_in("bomb.png", b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def truncated() -> str:
    whole = Path(saved("whole.jpg", picture((256, 256)))).read_bytes()
    return bytes_in("truncated.jpg", whole[: len(whole) * 55 // 100])


@dataclass(frozen=True)
class Good:
    """make writes the file and returns its name; note: words that the report must tell the reader."""

    make: Callable[[], str]
    note: str = ""


GOOD = {
    "a JPEG": Good(lambda: saved("plain.jpg")),
    "a PNG named .jpg": Good(lambda: saved("lies.jpg", format="PNG")),
    "a name without suffix": Good(lambda: saved("picture", format="PNG")),
    "grey": Good(lambda: saved("grey.png", picture().convert("L"))),
    "grey with alpha": Good(lambda: saved("la.png", picture().convert("LA"))),
    "16 bits": Good(sixteen_bits, "16-bit grey scaled to 8 bits"),
    "black and white": Good(lambda: saved("bits.png", picture().convert("1"))),
    "transparent": Good(transparent, "transparent parts shown on white"),
    "a palette with a transparent entry": Good(palette, "transparent parts shown on white"),
    "CMYK": Good(lambda: saved("cmyk.jpg", picture().convert("CMYK")), "CMYK turned into RGB"),
    "a GIF of three frames": Good(animated, "frame 1 of 3 is used"),
    "WebP": Good(lambda: saved("photo.webp")),
    "BMP": Good(lambda: saved("photo.bmp")),
    "TIFF": Good(lambda: saved("photo.tiff")),
    "one pixel": Good(lambda: saved("one.png", picture((1, 1))), "enlarged to 32 x 32"),
    "a strip": Good(lambda: saved("strip.png", picture((640, 4))), "enlarged to"),
    "all white": Good(lambda: saved("white.png", Image.new("RGB", (40, 40), "white"))),
    "all black": Good(lambda: saved("black.png", Image.new("RGB", (40, 40), "black"))),
    "its name is the index's": Good(lambda: saved("index.png")),
}


@pytest.mark.parametrize("case", GOOD)
def test_an_odd_picture_is_explained(case: str, run: Run) -> None:
    name = GOOD[case].make()
    ran = run(name)
    stem = "index-2" if name == "index.png" else Path(name).stem
    assert (ran.status, ran.out) == (0, f"out/{stem}.html\n")
    assert outputs() == [f"{stem}.html", f"{stem}.json", f"{stem}.png"]
    told = record(stem)
    assert told["image"]["file"] == name and told["image"]["size"] == [32, 32]
    assert GOOD[case].note in " ".join(told["notes"])
    assert all(stage[kind] for stage in told["spectrum"] for kind in ("blind", "wiener", "cascade"))


def test_a_picture_stored_on_its_side_is_explained_upright(run: Run) -> None:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Pillow's transpose that stores it so
    saved("in/upright.png")
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        saved(f"in/{orientation}.png", picture().transpose(Image.Transpose(turn)), exif=exif)
    assert run("in").status == 0
    straight = record("upright")
    for orientation in turns:
        turned = record(str(orientation))
        assert turned["image"]["digest"] == straight["image"]["digest"]
        assert turned["classes"] == straight["classes"]
        assert f"EXIF orientation {orientation}" in " ".join(turned["notes"])


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: bytes_in("empty.jpg", b""), "empty.jpg is empty"),
    "text": (lambda: bytes_in("text.jpg", b"This is no picture at all.\n"), "text.jpg is not a picture"),
    "cut off": (truncated, "truncated.jpg is damaged or cut off"),
    "a decompression bomb": (bomb, "bomb.png is too large"),
    "a URL": (lambda: "https://example.org/cat.jpg", "https://example.org/cat.jpg is a URL"),
    "a missing file": (lambda: saved("there.jpg").replace("there", "their"), "the nearest name there is there.jpg"),
    "a missing folder": (lambda: "nowhere/cat.jpg", "nowhere"),
    "an empty folder": (lambda: os.fspath(Path("none").mkdir() or "none"), "none has no picture directly in it"),
    "a folder of folders": (lambda: str(Path(saved("a/b/c.png")).parents[1]), "its subfolder b has some"),
    "a device": (lambda: "/dev/null", "/dev/null is not a regular file"),
    "a NUL in the name": (lambda: "a\0b.png", "cannot be opened"),
    "too long a strip": (lambda: saved("long.png", Image.new("L", (60000, 1))), "too elongated"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_is_one_line(case: str, run: Run) -> None:
    make, words = BAD[case]
    ran = run(make())
    assert (ran.status, ran.out, outputs()) == (2, "", [])
    assert words in ran.error
    assert not Path("out").exists()


def test_a_bad_picture_among_good_ones_is_listed_and_the_others_are_done(run: Run) -> None:
    for name in ("b.png", "index.png", "b.jpg", "10.png", "9.png"):
        saved(f"folder/{name}")
    bytes_in("folder/c.jpg", b"no picture")
    ran = run("folder")
    assert (ran.status, ran.out) == (2, "")
    assert "1 of 6 pictures could not be explained (c); the others are done" in ran.error
    stems = ["10", "9", "b-jpg", "b-png", "index-2"]
    assert outputs() == sorted([f"{s}.{x}" for s in stems for x in ("html", "json", "png")] + ["index.html"])
    assert "<b><bdi>c.jpg</bdi></b>" in Path("out/index.html").read_text()
    links = re.findall(r'<h3><a href="([^"]+)">', Path("out/index.html").read_text())
    assert links == ["9.html", "10.html", "b-jpg.html", "b-png.html", "index-2.html"]
    assert "is not a picture that can be read" in Path("out/index.html").read_text()


def test_only_what_was_done_has_seconds_and_all_is_done_in_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the mean colour no start is taught, and a part that is left out has no time, though it cost some."""
    parts: list[int] = []
    monkeypatch.setattr(Progress, "start", lambda self, total, told: parts.append(total))
    monkeypatch.setattr(Progress, "advance", lambda self, n=1, told=None: parts.append(-n))
    true = pullback.explain.recipe._iterative

    def failing(session: Any, stage: Any, method: str, *options: Any) -> Any:
        if (stage.number, method) == (2, "wiener"):
            raise StageError("no luck")
        return true(session, stage, method, *options)

    monkeypatch.setattr(pullback.explain.recipe, "_iterative", failing)
    assert run(saved("photo.png"), "--start", "mean").status == 0
    told = record("photo")
    stages = [f"stage {n}: {method}" for n in (1, 2) for method in ("blind", "wiener", "cascade")]
    stages.remove("stage 2: wiener")
    assert list(told["seconds"]) == [*stages, "class and channels", "certificates"]
    assert told["spectrum"][1]["skipped"] == {"wiener": "no luck"}
    assert told["image"]["origin"] == "your own file"
    assert sum(parts) == 0


def test_the_longest_file_names_get_reports_with_shorter_ones(run: Run) -> None:
    """Names are counted in bytes: a letter may take several, and ".html" takes one more than ".png"."""
    stems = ["n" * 250 + "1", "n" * 250 + "2", "n" * 250, "é" * 125 + "n", "漢" * 83]
    for stem in stems:
        saved(f"folder/{stem}.png")
    for folder in ("a", "b"):
        saved(f"{folder}/{'d' * 251}.png")  # the name is told apart by its ending, and is longer then
    ran = run("folder", "a", "b")
    assert (ran.status, ran.out) == (0, "out/index.html\n")
    made = {Path(name).stem for name in outputs()} - {"index"}
    assert len(outputs()) == 3 * 7 + 1 and len(made) == 7
    assert {stems[2], stems[4]} < made
    assert sorted(re.sub("-[0-9a-f]{12}$", "", stem) for stem in made - set(stems)) == [
        "d" * 237, "d" * 237, "n" * 237, "n" * 237, "é" * 118,
    ]  # fmt: skip
    for link in re.findall(r'<h3><a href="([^"]+)">', Path("out/index.html").read_text()):
        assert Path("out", unquote(link)).is_file()
    assert run("folder", "a", "b").err.count("done before") == 7


def test_every_awkward_file_of_the_data_folder(data: Path, run: Run) -> None:
    """All of them as one folder; what each alone must do is told above."""
    broken = {"bomb_30000x30000", "empty", "text_not_image", "truncated"}
    files = sorted(p for p in (data / "awkward").iterdir())
    ran = run(data / "awkward")
    assert ran.status == 2
    assert f"{len(broken)} of {len(files)} pictures could not be explained" in ran.error
    done = {Path(name).stem for name in outputs() if name.endswith(".json")}
    assert done == {p.name.replace(".", "-") if p.stem == "photo" else p.stem for p in files if p.stem not in broken}
    for name in (p.name for p in files if p.stem in broken):
        assert f"<bdi>{name}</bdi>" in Path("out/index.html").read_text()
    turned = [[c["probability"] for c in record(f"exif_orientation_{n}")["classes"]] for n in (2, 3, 6)]
    assert turned[1] == pytest.approx(turned[0], abs=0.01) and turned[2] == pytest.approx(turned[0], abs=0.01)


def test_file_and_class_names_with_html_are_shown_as_text(run: Run) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append((tag, attrs))

    evil = '"><img src=x onerror=alert(1)>'
    Path("names.txt").write_text(f"<script>alert(1)</script>\n{evil}\n&lt;b&gt; {{{{ 7 * 7 }}}}\n")
    saved(f"in/{evil}.png")
    saved("in/other.png", picture(seed=1))
    assert run("in", "--classes", "names.txt", "--target", "0").status == 0
    pages = [p for p in Path("out").iterdir() if p.suffix == ".html"]
    assert len(pages) == 3
    for page in pages:
        text, parser = page.read_text(), Tags()
        parser.feed(text)
        assert not [tag for tag, _ in parser.tags if tag in ("script", "iframe", "object", "form", "link")]
        for tag, attributes in parser.tags:
            assert not [key for key, _ in attributes if key.startswith("on")]
            assert tag != "img" or (dict(attributes)["src"] or "").startswith("data:")
        assert ("&lt;script&gt;alert(1)&lt;/script&gt;" in text) or page.name == "index.html"
        assert (
            "&amp;lt;b&amp;gt; {{ 7 * 7 }}" in text or page.name == "index.html"
        )  # no template of ours, nor an entity
    assert "&gt;&lt;img src=x onerror=alert(1)&gt;" in Path("out/index.html").read_text()
    assert {c["name"] for c in record("other")["classes"]} == set(Path("names.txt").read_text().splitlines())


# ---- masks --------------------------------------------------------------------------------------------------------


def mask(size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An object off the centre, unlike its own mirror images."""
    values = np.zeros(size[::-1], np.uint8)
    values[4:20, 6:17], values[4:9, 6:30] = 255, 255
    return Image.fromarray(values)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("drawn_on", ["the upright picture", "the stored pixels"])
def test_a_mask_beside_a_picture_stored_on_its_side(orientation: int, drawn_on: str, run: Run) -> None:
    """Its foreground energies are those of the upright pair."""
    saved("upright.png")
    saved("upright_mask.png", mask())
    assert run("upright.png", "--mask", "upright_mask.png").status == 0
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved("turned.png", picture().transpose(turn), exif=exif)
    stored = drawn_on == "the stored pixels"
    options = {"exif": exif} if stored and orientation == 3 else {}  # the same size either way: only its own tag tells
    saved("turned_mask.png", mask().transpose(turn) if stored else mask(), **options)
    assert run("turned.png", "--mask", "turned_mask.png").status == 0
    found, expected = record("turned"), record("upright")
    assert found["foreground"] == expected["foreground"]
    assert 0 < found["foreground"]["full"] < 1 and 0 < found["foreground"]["area"] < 1
    regions = [[c for c in r["certificates"] if c["seed"] == "the region"] for r in (found, expected)]
    assert regions[0] == regions[1] != []


BAD_MASKS: dict[str, tuple[Callable[[], str], str]] = {
    "another size": (lambda: saved("m.png", mask((41, 36))), "mask m.png is 41 x 36 (width x height), its picture p.png 40 x 36"),
    "missing": (lambda: "m.png", "masks: m.png does not exist"),
    "a photograph": (lambda: saved("m.png", picture()), "mask m.png is coloured"),
    "unknown labels": (lambda: saved("m.png", mask().point(lambda v: v // 50)), "has the values 0, 5"),
    "no picture": (lambda: bytes_in("m.png", b"no"), "mask: m.png is not a picture"),
    "a folder without it": (lambda: str(Path(saved("masks/q.png", mask())).parent), "masks has no mask for p.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_mask_that_does_not_belong_is_one_line(case: str, run: Run) -> None:
    make, words = BAD_MASKS[case]
    ran = run(saved("p.png"), "--mask", make())
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.error
    assert not Path("out").exists()


def test_an_empty_mask_has_no_energy_and_says_so(run: Run) -> None:
    nothing = saved("m.png", Image.new("L", (40, 36), 0))
    assert run(saved("p.png"), "--mask", nothing).status == 0
    told = record("p")
    assert told["foreground"] == {"full": None, "positive": None, "negative": None, "saliency": None, "area": 0.0}
    assert "the mask is empty: no pixel of it is object" in told["notes"]


# ---- options ------------------------------------------------------------------------------------------------------


def state(net: str = "Tiny") -> dict[str, torch.Tensor]:
    import hostile_tiny_net

    with torch.random.fork_rng([]):
        return dict(getattr(hostile_tiny_net, net)().state_dict())


def weights(name: str, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, name)
    return name


def cut_off() -> str:
    whole = Path(weights("cut.safetensors", state())).read_bytes()
    return bytes_in("cut.safetensors", whole[: len(whole) // 2])


def with_nan() -> str:
    tensors = state()
    tensors["fc.weight"][1, 2] = float("nan")
    return weights("nan.safetensors", tensors)


def whole_module() -> str:
    """A pickle that would run code of the user's when read."""
    import hostile_tiny_net

    torch.save(hostile_tiny_net.Tiny(), "module.pt")
    return "module.pt"


def plain_pickle() -> str:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("owned",)

    return bytes_in("evil.pkl", pickle.dumps(Evil()))


def correctors(*channels: int) -> str:
    Correctors.unfitted(channels).save("wrong.safetensors")
    return "wrong.safetensors"


WRONG: dict[str, tuple[Callable[[], list[str]], str]] = {
    "weights of another network": (lambda: ["--weights", weights("other.safetensors", state("OtherNet"))], "level2.bias is (9)"),
    "weights with other names": (lambda: ["--weights", weights("o.safetensors", {"conv": torch.ones(3)})], "unexpected conv"),
    "truncated weights": (lambda: ["--weights", cut_off()], "cut.safetensors is no whole safetensors file"),
    "weights that are text": (lambda: ["--weights", bytes_in("t.safetensors", b"{}")], "t.safetensors is no whole"),
    "weights with a NaN": (lambda: ["--weights", with_nan()], "nan.safetensors: fc.weight holds 1 NaN"),
    "a pickled module": (lambda: ["--weights", whole_module()], "module.pt is damaged, or cannot be read without unpickling"),
    "a pickle that runs code": (lambda: ["--weights", plain_pickle()], "evil.pkl is damaged, or cannot be read without"),
    "no weights file": (lambda: ["--weights", "none.pt"], "'none.pt' is no file here"),
    "weights that cannot be had": (lambda: ["--weights", "pretrained"], "has no pretrained weights to download"),
    "an unknown class": (lambda: ["--target", "tabby"], "unknown class 'tabby'"),
    "a class out of range": (lambda: ["--target", "3"], "class 3 is out of range: the network has classes 0 to 2"),
    "a negative class": (lambda: ["--target=-1"], "class -1 is out of range"),
    "a class of two dashes": (lambda: ["--target=--5"], "unknown class '--5'"),
    "a class that is a superscript": (lambda: ["--target", "\N{SUPERSCRIPT TWO}"], "unknown class '\N{SUPERSCRIPT TWO}'"),
    "too few class names": (lambda: ["--classes", bytes_in("c.txt", b"a\nb\n")], "2 class names for a network with 3 outputs"),
    "no class names": (lambda: ["--classes", "none.txt"], "'none.txt' is no file"),
    "an unknown stage": (lambda: ["--stages", "layer9"], "no module 'layer9'"),
    "a stage without space": (lambda: ["--stages", "gate1,fc"], "module 'fc' returns shape (1, 3)"),
    "stages in the wrong order": (lambda: ["--stages", "gate2,gate1"], "gate1"),
    "an unknown source": (lambda: ["--encoder", "nowhere:net"], "encoder 'nowhere:net' is not understood"),
    "an unknown encoder": (lambda: ["--encoder", "torchvision:resnet19"], "'resnet19'; nearest: resnet18"),
    "an unknown module": (lambda: ["--encoder", "module:none_such:factory"], "there is no module 'none_such'"),
    "an unknown factory": (lambda: ["--encoder", SPEC + "y"], "hostile_tiny_net has no 'factoryy'"),
    "a factory that fails": (lambda: ["--encoder", SPEC.replace("factory", "broken")], "no luck today"),
    "a factory that leaves": (lambda: ["--encoder", "module:sys:exit"], "module:sys:exit cannot be built (SystemExit"),
    "no spatial stages": (lambda: ["--encoder", SPEC.replace("factory", "perceptron"), "--stages", "1"], "'1'"),
    "an unknown device": (lambda: ["--device", "gpu9"], "device 'gpu9' cannot be used here"),
    "a device that is not here": (lambda: ["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    "a device of another package": (lambda: ["--device", "hpu"], "device 'hpu' cannot be used here"),
    "a device of nobody's": (lambda: ["--device", "privateuseone"], "device 'privateuseone' cannot be used here"),
    "a device without numbers": (lambda: ["--device", "meta"], "device 'meta' cannot be used here"),
    "an unknown preprocessing key": (lambda: ["--preprocessing", "size=32;colour=3"], "has no entry 'colour'"),
    "a preprocessing key twice": (lambda: ["--preprocessing", "size=32;mean=0.5;mean=0.4"], "each name once"),
    "a size with a comma": (lambda: ["--preprocessing", "size=32,48"], "height and width are written 32x48"),
    "a preprocessing number": (lambda: ["--preprocessing", "size=32;mean=light"], "mean='light'"),
    "a preprocessing of zero": (lambda: ["--preprocessing", "size=32;std=0"], "std=(0.0, 0.0, 0.0)"),
    "pictures of absurd size": (lambda: ["--preprocessing", "size=1000000"], "size=(1000000, 1000000)"),
    "pictures resized absurdly": (lambda: ["--preprocessing", "size=32;resize=1000000"], "resize=1000000"),
    "pictures of infinite size": (lambda: ["--preprocessing", "size=1e999"], "size='1e999'"),
    "more channels than memory": (lambda: ["--preprocessing", "channels=99999999999"], "channels='99999999999'"),
    "no preprocessing at all": (lambda: ["--preprocessing", "the usual"], "preprocessing 'the usual' cannot be read"),
    "one channel for three": (lambda: ["--preprocessing", "size=32;channels=1;mean=0.5;std=0.5"], "(1, 1, 32, 32)"),
    "correctors of another network": (lambda: ["--correctors", correctors(3, 9)], "levels with [3, 9] channels"),
    "correctors that are weights": (lambda: ["--correctors", weights("w.safetensors", state())], "holds no correctors"),
    "correctors that are a folder": (lambda: ["--correctors", "."], "correctors file . is a folder"),
    "no correctors": (lambda: ["--correctors", "none.safetensors"], "none.safetensors does not exist"),
    "no such quality": (lambda: ["--quality", "best"], "best"),
    "an output folder below a file": (lambda: ["--out", bytes_in("file", b"kept") + "/out"], "a file stands where"),
    "an output folder that is a file": (lambda: ["--out", bytes_in("file", b"kept")], "output folder file cannot be used"),
    "an output folder that nobody may make": (lambda: ["--out", "/proc/out"], "output folder /proc/out cannot be used"),
    "too long an output name": (lambda: ["--out", "n" * 300], "choose a shorter name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_line_before_any_work(
    case: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pullback.explain.run, "explain", None)  # a picture that is begun would be a fault, status 1
    make, words = WRONG[case]
    saved("folder/a.png"), saved("folder/b.png", picture(seed=1))
    options = make()
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    ran = run("folder", *options)
    assert (ran.status, ran.out) == (2, "")
    if case != "no such quality":  # said by the parser of the command line, in its own form
        assert words in ran.error
    assert words in ran.err
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before
