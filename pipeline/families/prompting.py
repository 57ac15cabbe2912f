"""From a user's prompt to the text the model was trained on: the checkpoint's chat template, one image placeholder."""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, UnusablePromptError
from pipeline.families.loading import first_line

GENERIC = "<image>"  # what corpora write, whatever the model's own placeholder is


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, with the chat template of its processor where that has one of its own.

    Raises:
        UserError: no tokenizer that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        if not (checkpoint.path / "chat_template.jinja").exists():
            for name in ("processor_config.json", "chat_template.json"):  # where processors kept it before
                file = checkpoint.path / name
                template = json.loads(file.read_bytes()).get("chat_template") if file.exists() else None
                tokenizer.chat_template = template or tokenizer.chat_template
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"--model {checkpoint.name}: its tokenizer can't be used ({first_line(error)})") from error
    return tokenizer


def check_template(render: Callable[[str], str], checkpoint: Checkpoint) -> None:
    """Pose a prompt to see that the chat template takes one.

    Raises:
        UserError: it does not.
    """
    try:
        render("x")
    except (UnusablePromptError, TemplateError, TypeError, KeyError) as error:
        raise UserError(
            f"--model {checkpoint.name}: its chat template can't pose a prompt about an image ({first_line(error)})"
        ) from error


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    placeholder: str,
    default_template: str,
    inline: str | None = None,
) -> str:
    """The full text of a one-turn conversation about one image.

    Args:
        prompt: the user's words; may hold `<image>` or the family's placeholder once, which then says where the image
            goes.
        placeholder: the family's image placeholder.
        default_template: used when the checkpoint has no chat template; holds `placeholder` and `{prompt}`.
        inline: an image inside a text, placeholder included; None: the placeholder alone.

    Raises:
        UnusablePromptError: the prompt names several images.
    """
    inline = inline or placeholder
    prompt, count = _with_inline(prompt, placeholder, inline)
    if count > 1:
        raise UnusablePromptError(f"the prompt has {count} {placeholder} placeholders; one prompt takes one image")
    if tokenizer.chat_template:
        image = [] if count else [{"type": "image"}]
        conversation: list[Any] = [{"role": "user", "content": [*image, {"type": "text", "text": prompt}]}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str), "tokenize=False gives text"
    else:
        template = default_template.replace(f"{inline}\n", "").replace(inline, "") if count else default_template
        text = template.replace("{prompt}", prompt)
    if text.count(placeholder) != 1:
        raise UnusablePromptError(
            f"the chat template puts {text.count(placeholder)} {placeholder} placeholders into the prompt, expected 1"
        )
    return text


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a rendered prompt; a beginning of sequence that the template wrote is not added again."""
    bos = tokenizer.bos_token
    twice = isinstance(bos, str) and text.startswith(bos)
    ids = tokenizer(text, add_special_tokens=not twice)["input_ids"]
    assert isinstance(ids, list), "one text gives one list of ids"
    return ids


def _with_inline(prompt: str, placeholder: str, inline: str) -> tuple[str, int]:
    """The prompt with each of its placeholders written as `inline`, and how many it has."""
    marker = "\0"
    for form in sorted({GENERIC, placeholder, inline}, key=len, reverse=True):
        prompt = prompt.replace(form, marker)
    return prompt.replace(marker, inline), prompt.count(marker)
