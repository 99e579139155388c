"""Sample media made by script, the same bytes' content every time: a video, twenty pictures, thirty texts.

For the demo and the tests: cuts, words, shapes and which picture is a copy of which are known. The video has
seven shots and fourteen subtitles; among the pictures are five that were encoded again, scaled, cropped or turned
grey. Nothing is fetched.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.subtitles.stream import SubtitleStream
    from av.video.frame import VideoFrame
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT, FRAMES_PER_S = 320, 240, 10

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shot:
    """One shot of the video: its length and what is drawn."""

    seconds: float
    name: str
    sky: Colour
    ground: Colour
    thing: Colour


@dataclass(frozen=True, slots=True)
class Line:
    """One subtitle."""

    start_s: float
    end_s: float
    text: str


#: Cuts at 8, 17, 25, 34, 42 and 52 s; 60 s in all.
SHOTS: tuple[Shot, ...] = (
    Shot(8, "harbour at sunrise", (250, 180, 120), (40, 70, 120), (250, 240, 200)),
    Shot(9, "forest path", (150, 200, 160), (30, 80, 30), (90, 60, 30)),
    Shot(8, "kitchen", (240, 235, 220), (160, 110, 70), (200, 40, 30)),
    Shot(9, "night sky", (10, 10, 40), (5, 5, 15), (240, 240, 255)),
    Shot(8, "workshop", (110, 110, 115), (70, 60, 55), (230, 150, 20)),
    Shot(10, "snowy mountain", (130, 180, 240), (245, 248, 255), (60, 70, 90)),
    Shot(8, "market at noon", (90, 190, 230), (220, 200, 150), (150, 30, 120)),
)

LINES: tuple[Line, ...] = (
    Line(0.5, 3.8, "The fishing boats leave the harbour before the sun is up."),
    Line(4.2, 7.6, "Gulls follow them far out to sea."),
    Line(8.4, 12.0, "A narrow path leads through the old beech forest."),
    Line(12.5, 16.5, "In autumn people come here to look for mushrooms."),
    Line(17.4, 20.8, "Now we chop two onions and fry them slowly in butter."),
    Line(21.2, 24.6, "Add the tomatoes, a pinch of salt and fresh basil."),
    Line(25.5, 29.0, "On a clear night you can see the rings of Saturn through a small telescope."),
    Line(29.5, 33.5, "The light of that star left it a thousand years ago."),
    Line(34.4, 37.8, "She repairs violins that nobody else dares to open."),
    Line(38.2, 41.6, "The glue has to dry for two whole days."),
    Line(42.5, 46.5, "The climbers reached the summit just before the storm."),
    Line(47.0, 51.4, "Their rope had frozen as stiff as a stick."),
    Line(52.5, 55.8, "At the market a farmer weighs cherries on an iron scale."),
    Line(56.2, 59.6, "By noon every basket of strawberries is sold."),
)

TEXTS: tuple[tuple[str, str], ...] = (
    (
        "headphones",
        "Lightweight wireless headphones with active noise cancellation and thirty hours of battery.",
    ),
    ("headphones", "Wired studio headphones with a flat response for mixing music."),
    ("speaker", "A waterproof loudspeaker for the beach that plays for a whole day."),
    ("keyboard", "Mechanical keyboard with quiet switches, made for long hours of typing."),
    ("lamp", "Reading lamp with warm light that can be dimmed in ten steps."),
    ("tent", "Two-person tent that withstands heavy rain and strong wind."),
    ("boots", "Hiking boots of waxed leather with a sole that grips on wet rock."),
    ("backpack", "A backpack of forty litres with a separate pocket for a laptop."),
    ("stove", "Folding camping stove that boils half a litre of water in three minutes."),
    ("bicycle", "City bicycle with hub gears, a basket and lights that need no battery."),
    ("recipe", "Beat the eggs with sugar until pale, fold in the flour and bake for half an hour."),
    ("recipe", "Simmer red lentils with ginger, turmeric and coconut milk to a thick soup."),
    ("recipe", "Let the sourdough rest overnight in the fridge before you shape the loaf."),
    ("recipe", "Grill the aubergines whole until the skin is black and the inside is soft."),
    ("medicine", "Drink plenty of water and rest; see a doctor if the fever lasts longer than three days."),
    ("medicine", "The vaccine protects children against measles, mumps and rubella."),
    ("finance", "The central bank raised interest rates to slow inflation."),
    ("finance", "Shares of the airline fell after it warned of lower profits."),
    ("law", "The tenant may end the contract with three months' notice in writing."),
    ("law", "The court ruled that the patent was not valid."),
    ("space", "The probe sent back the first pictures of the moon's far side."),
    ("space", "A black hole bends the light of the stars behind it."),
    ("animals", "Young otters learn to swim by being pushed into the water by their mother."),
    ("animals", "Honey bees tell each other where the flowers are by dancing."),
    ("animals", "The cat slept on the warm windowsill all afternoon."),
    ("football", "The goalkeeper saved a penalty in the last minute of the match."),
    ("chess", "White sacrifices a rook and gives mate three moves later."),
    ("music", "The orchestra tuned its instruments before the conductor came on stage."),
    ("travel", "The night train to Vienna leaves from platform nine at half past ten."),
    ("garden", "Plant the tulip bulbs in autumn, twice as deep as they are tall."),
)


def make_all(folder: Path) -> dict[str, Path]:
    """Write everything below `folder`: ``video.mp4``, ``pictures/*``, ``texts/*.txt``; return name → path."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "texts").mkdir(exist_ok=True)
    made = {"video.mp4": folder / "video.mp4"}
    made["video.mp4"].write_bytes(video())
    for name, data in pictures().items():
        made[name] = folder / "pictures" / name
        made[name].write_bytes(data)
    for number, (topic, text) in enumerate(TEXTS):
        name = f"{number:02d}-{topic}.txt"
        made[name] = folder / "texts" / name
        made[name].write_text(text + "\n", encoding="utf-8")
    return made


# --- the video ----------------------------------------------------------------------------------------


def video(*, shots: Sequence[Shot] = SHOTS, lines: Sequence[Line] = LINES, container: str = "mp4") -> bytes:
    """Return the video, its subtitles embedded: ``mp4`` with mov_text, or ``matroska`` with SRT."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as target:
        seen = target.add_stream("mpeg4", rate=FRAMES_PER_S, options={"g": "20", "qscale": "4"})
        seen.width, seen.height, seen.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # Threads would cut the picture into slices; nothing else depends on the machine.
        seen.thread_count = 1
        said = None
        if lines:
            said = target.add_stream("mov_text" if container == "mp4" else "srt")
            said.codec_context.subtitle_header = _ASS_HEADER
            said.codec_context.time_base = _MILLISECONDS
            said.metadata["language"] = "eng"
        waiting = list(enumerate(lines))
        for number, frame in enumerate(_frames(shots)):
            # In the order of time, as players want it and as a file that is cut off needs it.
            while said is not None and waiting and waiting[0][1].start_s <= number / FRAMES_PER_S:
                target.mux(_packet(said, *waiting.pop(0)))
            target.mux(seen.encode(frame))
        target.mux(seen.encode())
    return out.getvalue()


def _packet(track: SubtitleStream, number: int, line: Line) -> Packet[SubtitleStream]:
    from av.subtitles.subtitle import SubtitleSet

    start, length = round(line.start_s * 1000), round((line.end_s - line.start_s) * 1000)
    dialogue = f"{number},0,Default,,0,0,0,,{line.text}"
    packet = track.codec_context.encode_subtitle(
        SubtitleSet.create(text=dialogue.encode(), start=0, end=length, pts=start * 1000)
    )
    packet.stream, packet.time_base = track, _MILLISECONDS
    packet.pts = packet.dts = start
    packet.duration = length
    return packet


def srt(lines: Sequence[Line] = LINES) -> str:
    """Return the subtitles as the text of an SRT file."""
    return "\n".join(
        f"{number}\n{_clock(line.start_s)} --> {_clock(line.end_s)}\n{line.text}\n"
        for number, line in enumerate(lines, 1)
    )


def shot_picture(shot: Shot, part: float = 0.5) -> Image:
    """Return the frame of a shot at `part` (0…1) of its length."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    image = Pillow.new("RGB", (WIDTH, HEIGHT), shot.sky)
    draw = ImageDraw.Draw(image)
    _DRAWINGS[shot.name](draw, shot, part)
    return image


def _frames(shots: Sequence[Shot]) -> Iterator[VideoFrame]:
    import av

    from_image: Callable[[Image], VideoFrame] = av.VideoFrame.from_image
    for shot in shots:
        count = round(shot.seconds * FRAMES_PER_S)
        for number in range(count):
            yield from_image(shot_picture(shot, number / count))


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milliseconds:03d}"


_MILLISECONDS = Fraction(1, 1000)
_ASS_HEADER = (
    b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
    b"Style: Default,Arial,16\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
)


def _harbour(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 150, WIDTH, HEIGHT), fill=shot.ground)
    sun = 150 - 60 * part
    draw.ellipse((200, sun - 30, 260, sun + 30), fill=shot.thing)
    boat = 40 + 120 * part
    draw.polygon([(boat, 170), (boat + 90, 170), (boat + 70, 195), (boat + 20, 195)], fill=(120, 40, 40))
    draw.polygon([(boat + 45, 90), (boat + 45, 165), (boat + 80, 165)], fill=(240, 240, 240))


def _forest(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 170, WIDTH, HEIGHT), fill=shot.ground)
    draw.polygon([(130, HEIGHT), (190, HEIGHT), (165, 170), (155, 170)], fill=(150, 120, 80))
    for number in range(9):
        x = (number * 41 - 30 * part) % (WIDTH + 30) - 15
        draw.rectangle((x - 6, 40, x + 6, 180), fill=shot.thing)
        draw.ellipse((x - 26, 0, x + 26, 70 + number % 3 * 12), fill=(30, 100 + number * 6, 40))


def _kitchen(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 160, WIDTH, HEIGHT), fill=shot.ground)
    for x in range(0, WIDTH, 40):
        draw.line((x, 0, x, 160), fill=(205, 200, 185), width=2)
    for y in range(0, 160, 40):
        draw.line((0, y, WIDTH, y), fill=(205, 200, 185), width=2)
    draw.ellipse((90, 130, 230, 190), fill=(50, 50, 55))
    draw.rectangle((225, 150, 310, 162), fill=(50, 50, 55))
    for number in range(4):
        middle = 115 + number * 26 + 4 * math.sin(6 * part + number)
        draw.ellipse((middle - 12, 142, middle + 12, 166), fill=shot.thing)


def _night(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 200, WIDTH, HEIGHT), fill=shot.ground)
    for number in range(70):
        x, y = (number * 97 + 13 + 20 * part) % WIDTH, number * 53 % 195
        size = 1 + number % 3
        draw.ellipse((x, y, x + size, y + size), fill=shot.thing)
    draw.ellipse((130, 70, 190, 130), fill=(220, 190, 130))
    draw.ellipse((95, 92, 225, 108), outline=(240, 220, 180), width=4)


def _workshop(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 180, WIDTH, HEIGHT), fill=shot.ground)
    for number in range(5):
        x = 30 + number * 60
        draw.rectangle((x, 20, x + 10, 90 + number % 2 * 30), fill=(180, 180, 185))
    swing = 12 * math.sin(5 * part)
    draw.ellipse((120 + swing, 95, 190 + swing, 150), fill=shot.thing)
    draw.ellipse((110 + swing, 135, 200 + swing, 205), fill=shot.thing)
    draw.rectangle((150 + swing, 30, 160 + swing, 110), fill=(60, 35, 15))


def _mountain(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.polygon(
        [(0, HEIGHT), (110, 60), (200, 170), (250, 110), (WIDTH, 220), (WIDTH, HEIGHT)], fill=shot.thing
    )
    draw.polygon([(110, 60), (85, 105), (105, 95), (120, 110), (137, 93)], fill=shot.ground)
    draw.rectangle((0, 215, WIDTH, HEIGHT), fill=shot.ground)
    for number in range(60):
        x, y = number * 71 % WIDTH, (number * 37 + 240 * part) % HEIGHT
        draw.ellipse((x, y, x + 3, y + 3), fill=(255, 255, 255))


def _market(draw: ImageDraw, shot: Shot, part: float) -> None:
    draw.rectangle((0, 150, WIDTH, HEIGHT), fill=shot.ground)
    for number in range(8):
        left = number * 40
        draw.rectangle((left, 40, left + 40, 80), fill=(230, 60, 50) if number % 2 else (250, 250, 250))
    for row in range(3):
        for column in range(12):
            x, y = 20 + column * 25 + 3 * math.sin(4 * part), 165 + row * 22
            draw.ellipse((x, y, x + 18, y + 18), fill=shot.thing if row % 2 else (200, 30, 40))


_DRAWINGS: dict[str, Callable[[ImageDraw, Shot, float], None]] = {
    "harbour at sunrise": _harbour,
    "forest path": _forest,
    "kitchen": _kitchen,
    "night sky": _night,
    "workshop": _workshop,
    "snowy mountain": _mountain,
    "market at noon": _market,
}


# --- a film with words in the picture and a voice -----------------------------------------------------

#: What is written in the film's picture. Two words each; none is spoken.
PHRASES: tuple[Line, ...] = (
    Line(1.5, 4.5, "purple lantern"),
    Line(7.0, 10.0, "marble staircase"),
    Line(12.5, 16.0, "frozen compass"),
    Line(18.0, 21.5, "copper kettle"),
)
#: Cuts at 6, 11 and 17 s.
FILM_SHOTS: tuple[Shot, ...] = tuple(
    Shot(seconds, *(getattr(SHOTS[number], name) for name in ("name", "sky", "ground", "thing")))
    for seconds, number in ((6, 1), (5, 3), (6, 5), (6.2, 6))
)


def film(
    sound: Path | None = None,
    *,
    shots: Sequence[Shot] = FILM_SHOTS,
    phrases: Sequence[Line] = PHRASES,
    moving: bool = True,
    sound_until_s: float = math.inf,
) -> bytes:
    """Return an MP4 without subtitles, `phrases` burned into its picture, with the sound of a file."""
    import av
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(34)
    from_image: Callable[[Image], VideoFrame] = av.VideoFrame.from_image
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
        seen: Any = target.add_stream("mpeg4", rate=FRAMES_PER_S, options={"g": "20", "qscale": "3"})
        seen.width, seen.height, seen.pix_fmt, seen.thread_count = 2 * WIDTH, 2 * HEIGHT, "yuv420p", 1
        heard: Any = target.add_stream("aac", rate=48_000, layout="mono") if sound else None
        number = 0
        for shot in shots:
            count = round(shot.seconds * FRAMES_PER_S)
            for index in range(count):
                picture = shot_picture(shot, index / count if moving else 0.5).resize(
                    (2 * WIDTH, 2 * HEIGHT), Pillow.Resampling.NEAREST
                )
                for line in phrases:
                    if line.start_s <= number / FRAMES_PER_S < line.end_s:
                        ImageDraw.Draw(picture).text(
                            (90, 380), line.text, "white", font, stroke_width=3, stroke_fill="black"
                        )
                target.mux(seen.encode(from_image(picture)))
                number += 1
        target.mux(seen.encode())
        if sound is not None:
            _add_sound(target, heard, sound, 0, min(sound_until_s, sum(shot.seconds for shot in shots)))
    return out.getvalue()


def recording(sound: Path, from_s: float, until_s: float) -> bytes:
    """Return a part of the sound of a file as an Ogg file (Opus)."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="ogg", options={"fflags": "+bitexact"}) as target:
        heard: Any = target.add_stream("libopus", rate=48_000, layout="mono")
        _add_sound(target, heard, sound, from_s, until_s)
    return out.getvalue()


def _add_sound(target: OutputContainer, heard: Any, sound: Path, from_s: float, until_s: float) -> None:
    import av

    with av.open(str(sound)) as source:
        resampler: Any = av.AudioResampler(
            heard.format.name, "mono", heard.rate, frame_size=heard.frame_size or 1024
        )
        for frame in itertools.takewhile(lambda frame: (frame.time or 0) < until_s, source.decode(audio=0)):
            if (frame.time or 0) >= from_s:
                frame.pts = None
                for made in resampler.resample(frame):
                    target.mux(heard.encode(made))
        for made in resampler.resample(None):
            target.mux(heard.encode(made))
    target.mux(heard.encode())


# --- a video of cuts ----------------------------------------------------------------------------------

CUTS_WIDTH, CUTS_HEIGHT, CUTS_FRAMES_PER_S = 320, 180, 24
_FADE_FRAMES = 12


@dataclass(frozen=True, slots=True)
class CutsVideo:
    """A video to measure scene detection with: when scenes begin (0 left out), and what looks like a cut."""

    data: bytes
    cuts_s: tuple[float, ...]
    flashes_s: tuple[float, ...]
    fades_s: tuple[float, ...]


def cuts_video(
    *,
    scenes: int = 52,
    seed: int = 5,
    enlarged: int = 1,
    codec: str = "mpeg4",
    options: Mapping[str, str] | None = None,
) -> CutsVideo:
    """Return scenes that share six colours: still, with something moving, panned slowly or fast.

    Every seventh has flashes of one to three frames, every thirteenth ends in a fade to black and out of it
    again, whose darkest moment counts as the cut. All of it has the grain of a camera. `enlarged` times the size of
    320×180 by repeating pixels; `options` go to the encoder.
    """
    import av

    random = np.random.default_rng(seed)
    grain = random.normal(0, 3, (8, CUTS_HEIGHT, CUTS_WIDTH, 1))
    out = io.BytesIO()
    cuts, flashes, fades = [], [], []
    written = 0
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
        track: Any = target.add_stream(codec, rate=CUTS_FRAMES_PER_S, options=dict(options or {}))
        track.width, track.height = CUTS_WIDTH * enlarged, CUTS_HEIGHT * enlarged
        track.pix_fmt, track.bit_rate, track.thread_count = "yuv420p", 1_000_000 * enlarged, 1
        for number in range(scenes):
            count = int(random.integers(20, 56))
            if number and number - 1 not in _fading(scenes):
                cuts.append(written / CUTS_FRAMES_PER_S)
            flash = int(random.integers(6, count - 8)) if number % 7 == 3 else -9
            if flash > 0:
                flashes.append((written + flash) / CUTS_FRAMES_PER_S)
            for index, picture in enumerate(_scene(random, number, count)):
                lit = picture * _light(number, index, count, scenes)
                if 0 <= index - flash <= number % 3:
                    lit = 255 - (255 - lit) * 0.2
                shown = np.clip(lit + grain[written % 8], 0, 255).astype(np.uint8)
                shown = shown.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
                target.mux(track.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
                written += 1
            if number in _fading(scenes):
                cuts.append(written / CUTS_FRAMES_PER_S)
                fades.append(cuts[-1])
        target.mux(track.encode())
    return CutsVideo(out.getvalue(), tuple(cuts), tuple(flashes), tuple(fades))


def _fading(scenes: int) -> frozenset[int]:
    return frozenset(number for number in range(scenes - 1) if number % 13 == 9)


def _light(number: int, index: int, count: int, scenes: int) -> float:
    """Return how much light is left in a frame: it goes at the end before a fade, and comes back behind it."""
    fading = _fading(scenes)
    if number in fading and index >= count - _FADE_FRAMES:
        return (count - 1 - index) / _FADE_FRAMES
    if number - 1 in fading and index < _FADE_FRAMES:
        return index / _FADE_FRAMES
    return 1.0


_PALETTE = ((32, 58, 92), (196, 84, 58), (232, 208, 160), (84, 128, 96), (140, 108, 150), (54, 46, 44))


def _scene(random: np.random.Generator, number: int, count: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the frames of a scene: the same colours every time, put together anew."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    wide = 3 * CUTS_WIDTH
    order = [_PALETTE[int(index)] for index in random.permutation(len(_PALETTE))]
    image = Pillow.new("RGB", (wide, CUTS_HEIGHT), order[0])
    draw = ImageDraw.Draw(image)
    for step in range(36):
        x, y = int(random.integers(-40, wide)), int(random.integers(-30, CUTS_HEIGHT))
        size = int(random.integers(20, 90))
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + size, y + int(size * 0.7)), fill=order[1 + step % 5])
    speed = (0, 0, 2, 5, 9)[number % 5]
    moving = number % 5 == 1
    for index in range(count):
        left = speed * index
        frame = image.crop((left, 0, left + CUTS_WIDTH, CUTS_HEIGHT))
        if moving:
            x = 4 * index
            ImageDraw.Draw(frame).ellipse((x, 60, x + 50, 110), fill=order[3])
        yield np.asarray(frame, np.float64)


# --- the pictures -------------------------------------------------------------------------------------

#: Copies and what each is a copy of.
COPIES: dict[str, str] = {
    "red-circle-small.jpg": "red-circle.png",
    "chessboard-cropped.png": "chessboard.png",
    "rainbow-recompressed.jpg": "rainbow.png",
    "sunset-large.webp": "sunset.png",
    "bricks-brighter.png": "bricks.png",
}


def pictures() -> dict[str, bytes]:
    """Return twenty encoded pictures by file name; `COPIES` tells which show the same thing."""
    from PIL import Image as Pillow

    originals = {f"{name}.png": drawn() for name, drawn in _PICTURES.items()}
    made = {name: _encoded(image, "PNG") for name, image in originals.items()}
    circle, board, rainbow = (originals[f"{name}.png"] for name in ("red-circle", "chessboard", "rainbow"))
    sunset, bricks = originals["sunset.png"], originals["bricks.png"]
    made["red-circle-small.jpg"] = _encoded(circle.resize((120, 90)), "JPEG", quality=75)
    made["chessboard-cropped.png"] = _encoded(board.crop((20, 15, 300, 225)), "PNG")
    made["rainbow-recompressed.jpg"] = _encoded(rainbow, "JPEG", quality=30)
    made["sunset-large.webp"] = _encoded(
        sunset.resize((640, 480), Pillow.Resampling.BICUBIC), "WEBP", quality=80
    )
    made["bricks-brighter.png"] = _encoded(bricks.point(lambda value: value * 1.12), "PNG")
    return made


def _encoded(image: Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _canvas(colour: Colour) -> tuple[Image, ImageDraw]:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    image = Pillow.new("RGB", (WIDTH, HEIGHT), colour)
    return image, ImageDraw.Draw(image)


def _from_array(values: npt.NDArray[np.floating]) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _grid() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rows, columns = np.indices((HEIGHT, WIDTH)).astype(np.float64)
    return rows, columns


def _red_circle() -> Image:
    image, draw = _canvas((250, 250, 245))
    draw.ellipse((90, 50, 230, 190), fill=(210, 25, 30))
    return image


def _blue_squares() -> Image:
    image, draw = _canvas((235, 240, 250))
    for row in range(3):
        for column in range(4):
            draw.rectangle(
                (20 + column * 75, 20 + row * 72, 70 + column * 75, 70 + row * 72), fill=(30, 60, 190)
            )
    return image


def _green_triangle() -> Image:
    image, draw = _canvas((255, 250, 225))
    draw.polygon([(160, 25), (290, 215), (30, 215)], fill=(20, 140, 60))
    return image


def _yellow_star() -> Image:
    image, draw = _canvas((25, 25, 80))
    points = []
    for number in range(10):
        radius, angle = (95 if number % 2 == 0 else 40), math.pi * (number / 5 - 0.5)
        points.append((160 + radius * math.cos(angle), 120 + radius * math.sin(angle)))
    draw.polygon(points, fill=(250, 215, 40))
    return image


def _chessboard() -> Image:
    rows, columns = _grid()
    light = (rows // 30 + columns // 40) % 2
    return _from_array(np.stack([light * 200 + 40, light * 185 + 35, light * 160 + 30], axis=-1))


def _rainbow() -> Image:
    rows, columns = _grid()
    distance = np.hypot(rows - 240, columns - 160)
    band = np.floor((distance - 100) / 16)
    colours = np.array(
        [
            [120, 60, 190],
            [50, 80, 220],
            [40, 170, 220],
            [50, 180, 70],
            [250, 220, 50],
            [250, 140, 40],
            [220, 40, 40],
        ]
    )
    image = np.full((HEIGHT, WIDTH, 3), (150, 205, 245))
    for number, colour in enumerate(colours):
        image[band == number] = colour
    return _from_array(image)


def _sunset() -> Image:
    rows, columns = _grid()
    height = rows / HEIGHT
    sky = np.stack([255 - 30 * height, 90 + 110 * height, 120 - 60 * height], axis=-1)
    sun = np.hypot(rows - 150, columns - 220) < 38
    sky[sun] = (255, 240, 170)
    sky[rows > 170] = (45, 30, 60)
    return _from_array(sky)


def _bricks() -> Image:
    image, draw = _canvas((190, 185, 175))
    for row in range(10):
        for column in range(-1, 6):
            x, y = column * 64 + (row % 2) * 32, row * 24
            draw.rectangle((x + 2, y + 2, x + 61, y + 21), fill=(150 + row * 3, 70, 50))
    return image


def _waves() -> Image:
    rows, columns = _grid()
    value = np.sin(rows / 9 + 2 * np.sin(columns / 30))
    return _from_array(np.stack([60 + 30 * value, 120 + 50 * value, 170 + 60 * value], axis=-1))


def _zebra() -> Image:
    rows, columns = _grid()
    value = 128 + 127 * np.sign(np.sin((columns + 0.5 * rows) / 8))
    return _from_array(np.repeat(value[..., None], 3, axis=-1))


def _sand() -> Image:
    grain = np.random.default_rng(7).normal(0, 18, (HEIGHT, WIDTH, 1))
    return _from_array(np.array([215, 190, 140]) + grain)


def _grass() -> Image:
    image, draw = _canvas((90, 150, 60))
    random = np.random.default_rng(11)
    for _ in range(900):
        x, y, lean = random.integers(0, WIDTH), random.integers(0, HEIGHT), random.integers(-6, 7)
        shade = int(random.integers(60, 200))
        draw.line((int(x), int(y), int(x + lean), int(y - 22)), fill=(shade // 3, shade, shade // 4), width=2)
    return image


def _city() -> Image:
    image, draw = _canvas((20, 25, 50))
    random = np.random.default_rng(5)
    for number in range(10):
        x, top = number * 32, int(random.integers(40, 140))
        draw.rectangle((x, top, x + 30, HEIGHT), fill=(55, 60, 75))
        for y in range(top + 6, HEIGHT - 6, 14):
            for window in (x + 5, x + 18):
                if random.random() < 0.6:
                    draw.rectangle((window, y, window + 7, y + 7), fill=(250, 225, 130))
    return image


def _flower() -> Image:
    image, draw = _canvas((205, 230, 200))
    draw.line((160, 130, 160, HEIGHT), fill=(40, 120, 50), width=8)
    for number in range(8):
        angle = math.pi * number / 4
        x, y = 160 + 46 * math.cos(angle), 100 + 46 * math.sin(angle)
        draw.ellipse((x - 26, y - 26, x + 26, y + 26), fill=(230, 110, 170))
    draw.ellipse((135, 75, 185, 125), fill=(250, 210, 60))
    return image


def _target() -> Image:
    rows, columns = _grid()
    ring = (np.hypot(rows - 120, columns - 160) // 18) % 2
    return _from_array(np.stack([230 - 20 * ring, 40 + 190 * ring, 40 + 190 * ring], axis=-1))


_PICTURES: dict[str, Callable[[], Image]] = {
    "red-circle": _red_circle,
    "blue-squares": _blue_squares,
    "green-triangle": _green_triangle,
    "yellow-star": _yellow_star,
    "chessboard": _chessboard,
    "rainbow": _rainbow,
    "sunset": _sunset,
    "bricks": _bricks,
    "waves": _waves,
    "zebra": _zebra,
    "sand": _sand,
    "grass": _grass,
    "city": _city,
    "flower": _flower,
    "target": _target,
}
