"""Questions about a scene that have exactly one right answer, worked out from its objects."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scenes import COLORS, DIGIT_KIND, KINDS, NUMBERS, SceneObject, Sign

ONE_WORD_TYPES = ("color", "shape", "digit", "count", "exist", "relation")
SMALL_PRINT_TYPES = ("mark", "number")  # of cluttered scenes only
SHORT_TYPES = (*ONE_WORD_TYPES, *SMALL_PRINT_TYPES)
LONG_TYPES = ("caption", "order")
QUESTION_TYPES = (*SHORT_TYPES, *LONG_TYPES)
CAPTION_PROMPT = "describe the image ."
ORDER_PROMPTS = ("describe the image from left to right .", "describe the image from above to below .")
DIRECTIONS = (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1))
CLEARLY_PX = 8
CLEARLY_NOT_PX = 5


@dataclass(frozen=True)
class Question:
    """A question, its type and its one answer."""

    type: str
    prompt: str
    answer: str


def with_article(words: str) -> str:
    """'a red circle', 'an orange star'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _color_questions(objects: Sequence[SceneObject]) -> list[Question]:
    names = [(KINDS[o.kind], COLORS[o.color]) for o in objects]
    names += [(f"digit {NUMBERS[o.digit]}", COLORS[o.color]) for o in objects if o.kind == DIGIT_KIND]
    uses = Counter(name for name, _ in names)
    return [Question("color", f"what color is the {name} ?", color) for name, color in names if uses[name] == 1]


def _shape_questions(objects: Sequence[SceneObject]) -> list[Question]:
    shapes = [o for o in objects if o.kind != DIGIT_KIND]
    uses = Counter(o.color for o in shapes)
    return [
        Question("shape", f"which shape is {COLORS[o.color]} ?", KINDS[o.kind]) for o in shapes if uses[o.color] == 1
    ]


def _digit_questions(objects: Sequence[SceneObject]) -> list[Question]:
    digits = [o for o in objects if o.kind == DIGIT_KIND]
    uses = Counter(o.color for o in digits)
    questions = [
        Question("digit", f"which digit is {COLORS[o.color]} ?", NUMBERS[o.digit]) for o in digits if uses[o.color] == 1
    ]
    if len(digits) == 1:
        questions.append(Question("digit", "which digit is shown ?", NUMBERS[digits[0].digit]))
    return questions


def _count_questions(objects: Sequence[SceneObject]) -> list[Question]:
    kinds, colors = Counter(o.kind for o in objects), Counter(o.color for o in objects)
    asked = [(f"{kind}s", kinds[i]) for i, kind in enumerate(KINDS)]
    asked += [(f"{color} objects", colors[i]) for i, color in enumerate(COLORS)]
    return [Question("count", f"how many {name} are there ?", NUMBERS[number]) for name, number in asked]


def _exist_questions(objects: Sequence[SceneObject]) -> list[Question]:
    """Every pair that is there, and every absent pair of which at least the colour or the kind is there."""
    pairs = {(o.color, o.kind) for o in objects}
    colors, kinds = {color for color, _ in pairs}, {kind for _, kind in pairs}
    return [
        Question(
            "exist",
            f"is there {with_article(f'{COLORS[color]} {KINDS[kind]}')} ?",
            "yes" if (color, kind) in pairs else "no",
        )
        for color in range(len(COLORS))
        for kind in range(len(KINDS))
        if color in colors or kind in kinds
    ]


def _relation_questions(objects: Sequence[SceneObject]) -> list[Question]:
    """Asked where one object lies clearly on that side of a uniquely named one and all the others clearly do not."""
    kinds = Counter(o.kind for o in objects)
    pairs = Counter((o.color, o.kind) for o in objects)
    questions = []
    for reference in objects:
        name = KINDS[reference.kind]
        if kinds[reference.kind] > 1:
            if pairs[reference.color, reference.kind] > 1:
                continue
            name = f"{COLORS[reference.color]} {name}"
        others = [o for o in objects if o is not reference]
        for words, axis, sign in DIRECTIONS:
            ahead = [sign * (o.center[axis] - reference.center[axis]) for o in others]
            there = [o for o, distance in zip(others, ahead, strict=True) if distance >= CLEARLY_PX]
            if len(there) == 1 and sum(distance <= -CLEARLY_NOT_PX for distance in ahead) == len(others) - 1:
                questions.append(Question("relation", f"what is {words} the {name} ?", KINDS[there[0].kind]))
    return questions


def _mark_questions(objects: Sequence[SceneObject]) -> list[Question]:
    pairs, kinds = Counter((o.color, o.kind) for o in objects), Counter(o.kind for o in objects)
    questions = []
    for host in objects:
        if host.mark >= 0 and pairs[host.color, host.kind] == 1:
            name = KINDS[host.kind] if kinds[host.kind] == 1 else f"{COLORS[host.color]} {KINDS[host.kind]}"
            questions.append(Question("mark", f"what color is the mark on the {name} ?", COLORS[host.mark]))
    return questions


def _number_questions(signs: Sequence[Sign]) -> list[Question]:
    def read(sign: Sign) -> str:
        return " ".join(NUMBERS[digit] for digit in sign.digits)

    questions = [Question("number", f"what number is on the {COLORS[s.color]} sign ?", read(s)) for s in signs]
    if len(signs) == 1:
        questions.append(Question("number", "what number is on the sign ?", read(signs[0])))
    return questions


def object_words(item: SceneObject) -> str:
    """'red circle', 'blue seven'."""
    return f"{COLORS[item.color]} {NUMBERS[item.digit] if item.kind == DIGIT_KIND else KINDS[item.kind]}"


def caption(objects: Sequence[SceneObject]) -> str:
    """The objects by colour, then kind, digits by their number.

    An order by what objects are, not where: the next one to name is a matter of what is there, as in the other
    questions, and does not hang on which of two centres is a pixel further left.
    """
    return _listed(sorted(objects, key=lambda o: (o.color, o.kind, o.digit)))


def _listed(objects: Sequence[SceneObject]) -> str:
    return ", ".join(with_article(object_words(item)) for item in objects) + "."


def _order_questions(objects: Sequence[SceneObject]) -> list[Question]:
    """Captions by place. Asked in training alone: they teach where things are, which relations hang on."""
    return [
        Question("order", prompt, _listed(sorted(objects, key=lambda o: o.center[axis])))
        for axis, prompt in enumerate(ORDER_PROMPTS)
    ]


def all_questions(objects: Sequence[SceneObject], signs: Sequence[Sign] = ()) -> dict[str, list[Question]]:
    """Every unambiguous question about a scene, by type; a type may have none."""
    return {
        "color": _color_questions(objects),
        "shape": _shape_questions(objects),
        "digit": _digit_questions(objects),
        "count": _count_questions(objects),
        "exist": _exist_questions(objects),
        "relation": _relation_questions(objects),
        "mark": _mark_questions(objects),
        "number": _number_questions(signs),
        "caption": [Question("caption", CAPTION_PROMPT, caption(objects))],
        "order": _order_questions(objects),
    }


def _shuffled(questions: list[Question], rng: np.random.Generator) -> list[Question]:
    return [questions[i] for i in rng.permutation(len(questions))]


def _balanced(questions: list[Question], rng: np.random.Generator) -> list[Question]:
    """Alternates between the answers, so that common answers are not asked for more often; 'zero' comes up seldom."""
    by_answer: dict[str, list[Question]] = defaultdict(list)
    for question in _shuffled(questions, rng):
        by_answer[question.answer].append(question)
    answers = sorted(by_answer)
    if "zero" in by_answer and len(answers) > 1 and rng.random() < 0.6:
        answers.remove("zero")
    ordered = [answers[i] for i in rng.permutation(len(answers))]
    rounds = max((len(by_answer[answer]) for answer in ordered), default=0)
    return [by_answer[answer][turn] for turn in range(rounds) for answer in ordered if turn < len(by_answer[answer])]


def sample_questions(
    objects: Sequence[SceneObject], rng: np.random.Generator, *, limits: dict[str, int], signs: Sequence[Sign] = ()
) -> list[Question]:
    """Up to `limits[type]` different questions of each type, in the order of `limits`."""
    available = all_questions(objects, signs)
    picked: list[Question] = []
    for kind, limit in limits.items():
        order = _balanced if kind in ("count", "exist") else _shuffled
        picked += order(available[kind], rng)[:limit]
    return picked
