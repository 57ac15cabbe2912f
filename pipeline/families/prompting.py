"""From a user's prompt to the text the model was trained on: the checkpoint's chat template, one image placeholder."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.families.base import UnusablePromptError


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, placeholder: str, default_template: str) -> str:
    """The full text of a one-turn conversation about one image.

    Args:
        prompt: the user's words; may hold the placeholder once, which then says where the image goes.
        placeholder: the family's image placeholder.
        default_template: used when the checkpoint has no chat template; holds `placeholder` and `{prompt}`.

    Raises:
        UnusablePromptError: the prompt names several images.
    """
    count = prompt.count(placeholder)
    if count > 1:
        raise UnusablePromptError(f"the prompt has {count} {placeholder} placeholders; one prompt takes one image")
    if tokenizer.chat_template:
        image = [] if count else [{"type": "image"}]
        conversation: list[Any] = [{"role": "user", "content": [*image, {"type": "text", "text": prompt}]}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str), "tokenize=False gives text"
    else:
        template = default_template.replace(placeholder, "").lstrip("\n") if count else default_template
        text = template.replace("{prompt}", prompt)
    if text.count(placeholder) != 1:
        raise UnusablePromptError(
            f"the chat template puts {text.count(placeholder)} {placeholder} placeholders into the prompt, expected 1"
        )
    return text
