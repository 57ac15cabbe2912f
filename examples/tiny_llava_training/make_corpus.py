"""Makes examples/scenes: held-out scenes with questions as WebDataset tars and as JSONL with an image folder.

The plain scenes are scenes-*.tar and scenes.jsonl, the cluttered ones cluttered-*.tar and cluttered.jsonl, whose
questions have types of their own, such as `cluttered_color`. Some plain inputs are bad on purpose; BAD_INPUTS names
them. The bytes depend on this tree and on Pillow's JPEG encoder only.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cluttered import make_cluttered_scene
from questions import ONE_WORD_TYPES, SHORT_TYPES, Question, sample_questions
from scenes import JPEG_QUALITY, Scene, SceneObject, make_scene

TAR_IMAGES = 104
NUM_IMAGES, NUM_CLUTTERED = 3 * TAR_IMAGES, TAR_IMAGES  # the cluttered are numbered on behind the plain
CLUTTERED_PREFIX = "cluttered_"
CORPUS_DIR = Path(__file__).resolve().parent.parent / "scenes"
_QUESTION_SEED = 77
_SCARCE_TYPES = ("relation", "digit", "shape")


def _jpeg(image: Image.Image, **options: object) -> bytes:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=JPEG_QUALITY, **options)
    return stored.getvalue()


def _truncated(scene: Scene) -> bytes:
    return scene.jpeg[: len(scene.jpeg) * 2 // 5]


def _zero_bytes(_: Scene) -> bytes:
    return b""


def _text_file(_: Scene) -> bytes:
    return b"This is not an image. A reader must say so and go on.\n"


def _alpha_png(scene: Scene) -> bytes:
    pixels = Image.fromarray(scene.pixels())
    fade = np.linspace(150, 255, pixels.height).astype(np.uint8)[:, None].repeat(pixels.width, axis=1)
    pixels.putalpha(Image.fromarray(np.where(scene.owner >= 0, np.uint8(255), fade)))
    stored = io.BytesIO()
    pixels.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def _grey(scene: Scene) -> bytes:
    return _jpeg(Image.fromarray(scene.pixels()).convert("L"))


def _cmyk(scene: Scene) -> bytes:
    return _jpeg(Image.fromarray(scene.pixels()).convert("CMYK"))


def _exif_rotated(scene: Scene) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _jpeg(Image.fromarray(scene.pixels()).transpose(Image.Transpose.ROTATE_90), exif=exif)


def _one_pixel(_: Scene) -> bytes:
    return _jpeg(Image.new("RGB", (1, 1), (128, 128, 128)))


BAD_INPUTS: dict[int, tuple[str, Callable[[Scene], bytes]]] = {
    17: ("truncated JPEG", _truncated),
    31: ("zero bytes", _zero_bytes),
    42: ("text file named .jpg", _text_file),
    58: ("PNG with alpha", _alpha_png),
    73: ("greyscale JPEG", _grey),
    119: ("CMYK JPEG", _cmyk),
    134: ("EXIF-rotated JPEG", _exif_rotated),
    151: ("1x1 pixel", _one_pixel),
}
COPIES = {88: 22, 270: 65}
EMPTY_PROMPT_IMAGE, FOREIGN_PROMPT_IMAGE = 160, 201


def _scene_questions(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> list[Question]:
    """Five or six questions: one of each one-word type as far as they go, a caption for every second scene."""
    wanted = int(rng.integers(5, 7))
    one_word = wanted - int(rng.random() < 0.5)
    pool = sample_questions(objects, rng, limits={kind: 3 for kind in ONE_WORD_TYPES})
    first_of: dict[str, Question] = {}
    for question in pool:
        first_of.setdefault(question.type, question)
    picked = [question for kind, question in first_of.items() if kind in _SCARCE_TYPES]
    others = [question for kind, question in first_of.items() if kind not in _SCARCE_TYPES]
    picked += [others[i] for i in rng.permutation(len(others))]
    rest = [question for question in pool if question not in picked]
    picked = (picked + [rest[i] for i in rng.permutation(len(rest))])[:one_word]
    captions = sample_questions(objects, rng, limits={"caption": 1}) if len(picked) < wanted else []
    return sorted(picked, key=lambda question: ONE_WORD_TYPES.index(question.type)) + captions


def _cluttered_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Six questions: a mark and a number where there is one, then others, a caption for every second scene."""
    limits = dict.fromkeys(("mark", "number", *(ONE_WORD_TYPES[i] for i in rng.permutation(len(ONE_WORD_TYPES)))), 1)
    picked = sample_questions(scene.objects, rng, limits=limits, signs=scene.signs)[: 6 - int(rng.random() < 0.5)]
    captions = sample_questions(scene.objects, rng, limits={"caption": 1}) if len(picked) < 6 else []
    questions = sorted(picked, key=lambda question: SHORT_TYPES.index(question.type)) + captions
    return [replace(question, type=CLUTTERED_PREFIX + question.type) for question in questions]


def _questions_for(number: int, scene: Scene, rng: np.random.Generator) -> list[Question]:
    if number >= NUM_IMAGES:
        return _cluttered_questions(scene, rng)
    if number == 151:
        return [
            Question("count", "how many circles are there ?", "zero"),
            Question("count", "how many red objects are there ?", "zero"),
            Question("exist", "is there a red circle ?", "no"),
            Question("exist", "is there a blue star ?", "no"),
            Question("exist", "is there a green digit ?", "no"),
        ]
    if number == 73:
        plain = {"count": 9, "relation": 2}
        sampled = sample_questions(scene.objects, rng, limits=plain)
        colors = ("red", "green", "blue", "yellow", "purple", "orange")
        return [question for question in sampled if not any(color in question.prompt for color in colors)][:6]
    return _scene_questions(scene.objects, rng)


def _prompts(number: int, scene: Scene) -> list[dict[str, object]]:
    rng = np.random.default_rng([_QUESTION_SEED, number])
    rows: list[dict[str, object]] = [
        {
            "id": f"{number:06d}-{turn}",
            "prompt": question.prompt,
            "references": [question.answer],
            "type": question.type,
        }
        for turn, question in enumerate(_questions_for(number, scene, rng))
    ]
    if number == EMPTY_PROMPT_IMAGE:
        rows[-1].update(prompt="", references=[], type="caption")
    if number == FOREIGN_PROMPT_IMAGE:
        rows[-1].update(prompt="图片里有什么 ? 🦁🔺 请用一个词回答", references=[], type="caption")
    return rows


def _tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o644, 0
            archive.addfile(member, io.BytesIO(content))
    return stored.getvalue()


def corpus_scene(number: int) -> Scene:
    """The scene that image `number` of the corpus shows (before some are made bad inputs)."""
    if number >= NUM_IMAGES:
        return make_cluttered_scene("corpus", number)
    return make_scene("corpus", COPIES.get(number, number))


def build_corpus() -> dict[str, bytes]:
    """Every file of the corpus, as path relative to its folder and content."""
    files: dict[str, bytes] = {}
    for name, numbers in (
        ("scenes", range(NUM_IMAGES)),
        ("cluttered", range(NUM_IMAGES, NUM_IMAGES + NUM_CLUTTERED)),
    ):
        manifest: list[str] = []
        members: list[tuple[str, bytes]] = []
        for number in numbers:
            scene = corpus_scene(number)
            encode = BAD_INPUTS[number][1] if number in BAD_INPUTS else None
            image = f"{number:06d}.{'png' if encode is _alpha_png else 'jpg'}"
            content = encode(scene) if encode else scene.jpeg
            prompts = _prompts(number, scene)
            files[f"images/{image}"] = content
            row = {"id": f"{number:06d}", "image": f"images/{image}", "prompts": prompts}
            manifest.append(json.dumps(row, ensure_ascii=False) + "\n")
            sidecar = json.dumps({"prompts": prompts}, ensure_ascii=False).encode()
            members += [(image, content), (f"{number:06d}.json", sidecar)]
        files[f"{name}.jsonl"] = "".join(manifest).encode()
        for shard, first in enumerate(range(0, len(members), 2 * TAR_IMAGES)):
            files[f"{name}-{shard:06d}.tar"] = _tar_bytes(members[first : first + 2 * TAR_IMAGES])
    return files


def differing_files(folder: Path) -> list[str]:
    """Corpus files that are missing from the folder or differ from what this script makes."""
    return [
        name
        for name, content in build_corpus().items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CORPUS_DIR)
    parser.add_argument("--check", action="store_true", help="compare the folder with what this script makes")
    args = parser.parse_args()
    if args.check:
        differing = differing_files(args.output)
        if differing:
            raise SystemExit(f"{len(differing)} files differ from what this script makes: {differing[:5]}")
        print("the corpus is what this script makes")
        return
    files = build_corpus()
    for name, content in files.items():
        path = args.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes in {args.output}")


if __name__ == "__main__":
    main()
