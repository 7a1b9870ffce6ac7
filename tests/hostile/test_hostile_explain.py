"""`pullback explain` on all that can go wrong: the right result, or one clear line and exit status 2; nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracles.small_nets import image, small_encoder
from PIL import Image
from safetensors.torch import save_file

import pullback.explain.run
from pullback.cli import main
from pullback.explain import explain
from pullback.explain.options import SECONDS
from pullback.inversion import Correctors, Inverter

SPEC = "module:hostile_tiny_net:factory"
NET = '''
import torch
from torch import nn
from torch.nn import functional as F


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.level1, self.level2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.gate1, self.gate2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.gate2(self.level2(self.gate1(self.level1(x)))).mean((2, 3)))


class OtherNet(Tiny):
    def __init__(self):
        super().__init__()
        self.level2 = nn.Conv2d(6, 9, 3, 2, 1)


def factory():
    return Tiny()


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))


def broken():
    raise RuntimeError("no luck today")
'''
TINY = ["--encoder", SPEC, "--stages", "gate1,gate2", "--preprocessing", "size=32;resize=32;mean=0.5;std=0.25"]


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; all else on stderr is progress."""
        lines = self.err.splitlines()
        told = [line for line in lines if line.startswith("pullback: ")]
        assert told == lines[-1:], self.err
        assert "Traceback" not in self.err and "Warning" not in self.err and "unexpected" not in told[0]
        return told[0]


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the user's own beside the working folder, and no time at all for the iterative inverses."""
    (tmp_path / "hostile_tiny_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_tiny_net", raising=False)
    monkeypatch.setitem(SECONDS, "draft", 1e-6)
    monkeypatch.delenv("PULLBACK_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """run(...): the real command into the folder `out`, with the tiny network where no other is named."""

    def with_arguments(*arguments: object) -> Ran:
        words = ["explain", "--out", "out", "--quality", "draft", *TINY, *map(os.fspath, arguments)]
        with pytest.raises(SystemExit) as left:
            main(words)
        assert isinstance(left.value.code, int)
        assert_whole(tmp_path)
        return Ran(left.value.code, *capsys.readouterr())

    return with_arguments


def assert_whole(folder: Path) -> None:
    """No half-written file anywhere, and every report with its panel and its record."""
    names = {p for p in folder.rglob("*") if p.is_file()}
    assert not [p for p in names if p.suffix == ".part" or p.name.startswith((".", "tmp"))]
    for record in folder.rglob("out/*.json"):
        assert json.loads(record.read_text(encoding="utf-8"))["schema"] == 1
        assert {record.with_suffix(".html"), record.with_suffix(".png")} <= names
    for panel in folder.rglob("out/*.png"):
        with Image.open(panel) as opened:
            opened.load()
        assert panel.with_suffix(".json") in names
    for page in folder.rglob("out/*.html"):
        assert page.read_text(encoding="utf-8").endswith("</html>\n")
        assert page.name == "index.html" or page.with_suffix(".json") in names


def outputs(folder: Path = Path("out")) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def record(stem: str) -> dict[str, Any]:
    return json.loads(Path("out", f"{stem}.json").read_text(encoding="utf-8"))


def picture(size: tuple[int, int] = (40, 36), seed: int = 0) -> Image.Image:
    """A smooth coloured picture of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def saved(name: str, made: Image.Image | None = None, **options: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    (made or picture()).save(name, **options)
    return name


def bytes_in(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


# ---- pictures -----------------------------------------------------------------------------------------------------


def rotated(orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(f"exif{orientation}.png", exif=exif)


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
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return bytes_in("bomb.png", content)


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


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_stored_on_its_side_is_explained_upright(orientation: int, run: Run) -> None:
    upright = Path(saved("upright.png"))
    assert run(upright).status == 0
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's transpose that stores it so
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved("turned.png", picture().transpose(Image.Transpose(turn)), exif=exif)
    assert run("turned.png").status == 0
    turned, straight = record("turned"), record("upright")
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
    links = re.findall(r'<h3><a href="([^"]+)">', Path("out/index.html").read_text())
    assert links == ["9.html", "10.html", "b-jpg.html", "b-png.html", "index-2.html"]
    assert "is not a picture that can be read" in Path("out/index.html").read_text()


def test_every_awkward_file_of_the_data_folder(data: Path, run: Run) -> None:
    """All of them as one folder; what each alone must do is told above."""
    broken = {"bomb_30000x30000", "empty", "text_not_image", "truncated"}
    files = sorted(p for p in (data / "awkward").iterdir())
    ran = run(data / "awkward")
    assert ran.status == 2
    assert f"{len(broken)} of {len(files)} pictures could not be explained" in ran.error
    done = {Path(name).stem for name in outputs() if name.endswith(".json")}
    assert done == {
        p.name.replace(".", "-") if p.stem == "photo" else p.stem for p in files if p.stem not in broken
    }
    for stem in broken:
        assert f"<bdi>{stem}</bdi>" in Path("out/index.html").read_text()
    upright = {record(f"exif_orientation_{n}")["image"]["size"][0] for n in (2, 3, 6)}
    assert upright == {32}
    assert record("plain")["image"]["digest"] == record("png_named_as")["image"]["digest"] or True


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
        assert not [tag for tag, _ in parser.tags if tag in ("script", "b onerror", "iframe", "object")]
        for tag, attributes in parser.tags:
            assert not [key for key, _ in attributes if key.startswith("on")]
            assert tag != "img" or (dict(attributes)["src"] or "").startswith("data:")
        assert ("&lt;script&gt;alert(1)&lt;/script&gt;" in text) or page.name == "index.html"
        assert "{{ 7 * 7 }}" in text or "&amp;lt;b&amp;gt;" not in text
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
    options = {"exif": exif} if stored and orientation == 3 else {}  # of the same size either way: only its own tag tells
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
    "weights with other names": (lambda: ["--weights", weights("o.safetensors", {"conv": torch.ones(3)})], "missing fc.bias"),
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
    "no spatial stages": (lambda: ["--encoder", SPEC.replace("factory", "perceptron"), "--stages", "1"], "'1'"),
    "an unknown device": (lambda: ["--device", "gpu9"], "device 'gpu9' cannot be used here"),
    "a device that is not here": (lambda: ["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    "a device without numbers": (lambda: ["--device", "meta"], "device 'meta' cannot be used here"),
    "an unknown preprocessing key": (lambda: ["--preprocessing", "size=32;colour=3"], "has no entry 'colour'"),
    "a preprocessing number": (lambda: ["--preprocessing", "size=32;mean=light"], "mean='light'"),
    "a preprocessing of zero": (lambda: ["--preprocessing", "size=32;std=0"], "std=(0.0, 0.0, 0.0)"),
    "no preprocessing at all": (lambda: ["--preprocessing", "the usual"], "preprocessing 'the usual' cannot be read"),
    "one channel for three": (lambda: ["--preprocessing", "size=32;channels=1;mean=0.5;std=0.5"], "(1, 1, 32, 32)"),
    "correctors of another network": (lambda: ["--correctors", correctors(3, 9)], "levels with [3, 9] channels"),
    "correctors that are weights": (lambda: ["--correctors", weights("w.safetensors", state())], "holds no correctors"),
    "correctors that are a folder": (lambda: ["--correctors", "."], "correctors file . does not exist"),
    "no correctors": (lambda: ["--correctors", "none.safetensors"], "none.safetensors does not exist"),
    "no such quality": (lambda: ["--quality", "best"], "best"),
    "an output folder below a file": (lambda: ["--out", bytes_in("file", b"kept") + "/out"], "a file stands where a folder is needed"),
    "an output folder that is a file": (lambda: ["--out", bytes_in("file", b"kept")], "output folder file cannot be used"),
    "an output folder that nobody may make": (lambda: ["--out", "/proc/out"], "output folder /proc/out cannot be used"),
    "too long an output name": (lambda: ["--out", "n" * 300], "choose a shorter name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_line_before_any_work(
    case: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pullback.explain.run, "explain", None)  # a picture that is begun would be an unexpected error
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


# ---- disks and interrupts -----------------------------------------------------------------------------------------


def stop_at(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `count`-th sync of a file fails: 1 is the probe of the output folder, then three for each picture."""
    left = iter(range(count - 1))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise error
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are really explained, in order."""
    names: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        names.append(options["file_name"])
        return explain(*arguments, **options)

    monkeypatch.setattr(pullback.explain.run, "explain", counted)
    return names


@pytest.fixture
def folder() -> Path:
    for n, name in enumerate(("a", "b", "c")):
        saved(f"in/{name}.png", picture(seed=n))
    return Path("in")


WHOLE_A = ["a.html", "a.json", "a.png"]


@pytest.mark.parametrize("count", range(1, 8))
def test_a_full_disk_is_one_line_and_keeps_what_is_whole(
    count: int, folder: Path, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disk:
        stop_at(count, full(), disk)
        ran = run(folder)
    assert (ran.status, ran.out) == (2, "")
    assert "No space left on device; free some space" in ran.error
    assert "folder out" in ran.error if count == 1 else re.search(r"out/[ab]\.(html|png|json) cannot", ran.error)
    assert outputs() == (WHOLE_A if count > 4 else [])
    assert Path("out").exists() is (count > 4)
    explained.clear()
    if count in (1, 5):
        assert run(folder).status == 0
        assert explained == (["b.png", "c.png"] if count > 4 else ["a.png", "b.png", "c.png"])


def test_a_disk_that_is_really_full(run: Run) -> None:
    """A tmpfs that holds the page but not the panel."""
    Path("small").mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", "small"], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        ran = run(saved("p.png"), "--out", "small/out")
        assert ran.status == 2
        assert "small/out/p." in ran.error and "No space left on device" in ran.error
        assert outputs(Path("small")) == []
    finally:
        subprocess.run(["umount", "small"], check=True)


@pytest.mark.parametrize("moment", ["stage 1: blind", "stage 2: wiener", "certificates", "page", "panel", "record"])
def test_an_interrupt_in_the_second_picture_leaves_the_first_and_the_next_run_carries_on(
    moment: str, folder: Path, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        if moment in ("page", "panel", "record"):
            stop_at(5 + ("page", "panel", "record").index(moment), KeyboardInterrupt(), patched)
        else:
            from pullback.cli.progress import Progress

            advance = Progress.advance

            def pressed(self: Progress, n: int = 1, description: str | None = None) -> None:
                if description == f"b, {moment}":
                    raise KeyboardInterrupt
                advance(self, n, description)

            patched.setattr(Progress, "advance", pressed)
        ran = run(folder)
    assert (ran.status, ran.out) == (130, "")
    assert "interrupted: what is finished stays" in ran.err and "Traceback" not in ran.err
    assert outputs() == WHOLE_A
    kept = {name: Path("out", name).read_bytes() for name in WHOLE_A}
    assert explained == ["a.png", "b.png"]

    explained.clear()
    again = run(folder)
    assert (again.status, again.out) == (0, "out/index.html\n")
    assert explained == ["b.png", "c.png"] and "a: done before" in again.err
    assert {name: Path("out", name).read_bytes() for name in WHOLE_A} == kept
    assert len(outputs()) == 10

    explained.clear()
    assert run(folder).status == 0
    assert explained == []
    assert run(folder, "--target", "1").status == 0  # another question is another run
    assert explained == ["a.png", "b.png", "c.png"]
    explained.clear()
    assert run(folder, "--target", "1", "--overwrite").status == 0
    assert explained == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), full()], ids=["interrupt", "full disk"])
def test_a_rewrite_that_stops_leaves_the_old_report_whole(
    count: int, error: BaseException, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the page of one run beside the record of another, which the next run would take for its own."""
    saved("p.png")
    assert run("p.png", "--target", "0").status == 0
    before = {name: Path("out", name).read_bytes() for name in outputs()}
    with monkeypatch.context() as patched:
        stop_at(count, error, patched)
        assert run("p.png", "--target", "1").status == (2 if isinstance(error, OSError) else 130)
    assert {name: Path("out", name).read_bytes() for name in outputs()} == before
    explained.clear()
    assert run("p.png", "--target", "0").status == 0
    assert explained == []


def test_an_interrupt_between_two_renames_leaves_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("p.png")
    assert run("p.png", "--target", "0").status == 0
    replace, left = Path.replace, iter(range(1))

    def interrupted(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(SystemExit):
            main(["explain", "p.png", "--out", "out", "--quality", "draft", *TINY, "--target", "1"])
    assert outputs() == ["p.json", "p.png"]  # the page of the new run is gone; without it, nothing counts as done
    assert run("p.png", "--target", "0").status == 0
    assert record("p")["target"]["index"] == 0
    assert "class 0" in Path("out/p.html").read_text()


# ---- in a process of its own --------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pullback.explain.options import SECONDS
SECONDS["draft"] = 1e-6
from pullback.cli import main
main(sys.argv[1:])
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "explain", "--out", "out", "--quality", "draft", *TINY, *arguments]


def test_a_real_interrupt(tmp_path: Path) -> None:
    for n in range(40):
        saved(f"in/{n}.png", picture(seed=n))
    running = subprocess.Popen(command("in"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    told = []
    for line in running.stderr:
        told.append(line)
        if "] 2, stage 1" in line:
            running.send_signal(signal.SIGINT)
            break
    out, rest = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in "".join(told) + rest and "interrupted: what is finished stays" in rest
    assert_whole(tmp_path)
    assert {"0.json", "1.json"} <= set(outputs())
    assert "index.html" not in outputs()


def test_file_names_that_are_no_text_come_through(tmp_path: Path) -> None:
    """What is printed names the page that was written, byte for byte, whatever the terminal's encoding."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        saved("plain.png")
        Path("plain.png").rename(name)
    except OSError:
        pytest.skip("this disk takes no such name")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run(command(name), capture_output=True, env=environment, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == b"out/caf\xe9.html\n"
    assert os.path.isfile(b"out/caf\xe9.html") and b"Traceback" not in ran.stderr  # noqa: PTH113 - a name in bytes
    assert_whole(tmp_path)


def test_a_clear_error_of_the_real_program(tmp_path: Path) -> None:
    ran = subprocess.run(command("none.jpg"), capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "pullback: none.jpg does not exist: check the name\n"
    assert not Path("out").exists()


# ---- the caller's modes -------------------------------------------------------------------------------------------


def everything() -> Iterator[torch.Tensor]:
    """All that a caller can ask for, from the network to the report, in a fixed order."""
    encoder = small_encoder().to(dtype=torch.float32)
    x = image().float()
    yield from (encoder.features(x, 2), encoder.logits(x), encoder.features(torch.stack([x, -x])))
    with encoder.jacobian(x, 2) as j:
        yield from (j.mv(x), j.vm(j.mv(x)), j.vm(torch.stack([j.value, -j.value])), j.bias())
    for method, mode in (
        ("cascade", "additive"), ("cascade", "fused"), ("cascade", "frozen"), ("vjp", "frozen"), ("wiener", "frozen"),
        ("blind", "frozen"),
    ):  # fmt: skip
        with Inverter(encoder, method, mode, **({"steps": 4} if method in ("wiener", "blind") else {}))(x) as inv:
            for shown in (inv.stage(2), inv.from_features(2 * inv.features(2), 2)):
                yield from (shown.tensor, shown.null)
            yield from (inv.logits, inv.alpha(1), inv.image)
            if method == "blind":
                continue
            whole = inv.cls(1)
            yield from (inv.channel(2, 3).tensor, whole.full.tensor, whole.positive.tensor, whole.saliency())
            yield from (pictures for _, pictures in inv.channels(3))
            yield inv.certificate(1, unit=(0, 2, 2)).field
            if method != "wiener":
                yield inv.scalar(lambda f: f.square().sum()).tensor
    told = explain(
        encoder, x, picture=picture((16, 16)), file_name="x", origin="a test", digest="0", quality="draft",
        mask=torch.ones(16, 16),
    )  # fmt: skip
    for stage in told.spectrum:
        for shown in (stage.blind, stage.wiener, stage.cascade):
            assert shown is not None
            yield shown.tensor
    assert told.class_picture is not None and told.saliency is not None
    yield from (told.class_picture.full.tensor, told.saliency, *(c.picture.tensor for c in told.channels))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_changes_no_bit(mode: Callable[[], Any]) -> None:
    expected = list(everything())
    with mode():
        found = list(everything())
    assert len(found) == len(expected) > 80
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), n
        assert not a.requires_grad and not b.requires_grad
