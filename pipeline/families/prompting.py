"""From a user's prompt to the text that the model was trained on: the checkpoint's chat template around one image."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.families.base import Checkpoint, Posed, Turn, UnusablePromptError
from pipeline.families.loading import first_line

GENERIC = "<image>"  # what corpora write, whatever the model's own placeholder is


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, with the chat template of its processor where that has one of its own.

    Raises:
        UserError: the checkpoint has no tokenizer that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        if not (checkpoint.path / "chat_template.jinja").exists():
            for name in ("processor_config.json", "chat_template.json"):  # where processors kept it before
                file = checkpoint.path / name
                template = json.loads(file.read_bytes()).get("chat_template") if file.exists() else None
                tokenizer.chat_template = template or tokenizer.chat_template
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"--model {checkpoint.name}: its tokenizer can't be used ({first_line(error)})") from error
    return tokenizer


class Poser:
    """Makes token ids of prompts.

    What a prompt says is text. A prompt that brings image or video tokens of its own is refused.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        render: Callable[[Posed], str],
        *,
        add_special_tokens: bool = True,
        video: str | None = None,
    ) -> None:
        """Pose a prompt at once, to see that the chat template takes one.

        Args:
            checkpoint: whose config says which tokens stand for images and videos.
            tokenizer: of the checkpoint.
            render: prompt -> text with one image.
            add_special_tokens: as the model's own processor asks its tokenizer.
            video: what stands for a video in a text, unless the tokenizer says so itself; None: the family's processor
                knows no videos.

        Raises:
            UserError: the chat template takes none.
        """
        self._tokenizer, self._render, self._add_special_tokens = tokenizer, render, add_special_tokens
        names = ("image_token_id", "video_token_id")
        ids = {getattr(owner, name, None) for owner in (checkpoint.config, tokenizer) for name in names}
        self._visual = {token for token in ids if isinstance(token, int)}
        self._video = video and (getattr(tokenizer, "video_token", None) or video)
        try:
            self._expected = self._count(self._tokenise(self._rendered("x")))
        except UnusablePromptError as error:
            raise UserError(
                f"--model {checkpoint.name}: its chat template can't pose a prompt about an image ({error})"
            ) from error

    def ids(self, prompt: Posed) -> list[int]:
        """Token ids of the rendered prompt, with as many image tokens as `render` writes for one image.

        Raises:
            UnusablePromptError: the prompt can't be rendered or tokenised, or holds tokens of images or videos.
        """
        ids = self._tokenise(self._rendered(prompt))
        counts = self._count(ids)
        for token in self._visual:
            if counts[token] != self._expected[token]:
                raise UnusablePromptError(
                    f"the prompt's own text gives {counts[token] - self._expected[token]:+d} tokens "
                    f"{self._tokenizer.convert_ids_to_tokens(token)!r}, which stand for images or videos"
                )
        return ids

    def _rendered(self, prompt: Posed) -> str:
        text = self._render(prompt)
        if self._video and self._video in text:
            raise UnusablePromptError(
                f"the prompt's own text holds {self._video!r}, which stands for a video; a prompt is about one image"
            )
        return text

    def _tokenise(self, text: str) -> list[int]:
        return tokenise(self._tokenizer, text, add_special_tokens=self._add_special_tokens)

    def _count(self, ids: list[int]) -> Counter[int]:
        return Counter(token for token in ids if token in self._visual)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Posed,
    *,
    placeholder: str,
    default_template: str,
    inline: str | None = None,
) -> str:
    """The full text of a conversation about one image.

    Args:
        prompt: the user's words, or all turns of a conversation that ends with them. What the user says may hold
            `<image>` or the family's placeholder once, which then says where the image goes; else it goes before the
            user's first words.
        placeholder: the family's image placeholder.
        default_template: used when the checkpoint has no chat template; holds `placeholder` and `{prompt}`.
        inline: an image inside a text, placeholder included; None: the placeholder alone.

    Raises:
        UnusablePromptError: the prompt names several images, or the template can't pose it.
    """
    inline = inline or placeholder
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    written = [_with_inline(turn.text, placeholder, inline) for turn in turns]
    count = sum(found for _, found in written)
    if count > 1:
        raise UnusablePromptError(f"the prompt has {count} {placeholder} placeholders; one prompt takes one image")
    if any(found and turn.role != "user" for turn, (_, found) in zip(turns, written, strict=True)):
        raise UnusablePromptError(f"a turn of the conversation that is not the user's holds {placeholder}")
    if tokenizer.chat_template:
        conversation = _conversation(turns, [text for text, _ in written], with_image=not count)
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the checkpoint: anything may come out of it
            raise UnusablePromptError(f"the chat template can't pose this prompt ({first_line(error)})") from error
        assert isinstance(text, str), "tokenize=False gives text"
    elif len(turns) > 1:
        raise UnusablePromptError(
            "the prompt has earlier turns, and the checkpoint has no chat template that says how they are written"
        )
    else:
        template = default_template.replace(f"{inline}\n", "").replace(inline, "") if count else default_template
        text = template.replace("{prompt}", written[0][0])
    if text.count(placeholder) != 1:
        raise UnusablePromptError(
            f"the chat template puts {text.count(placeholder)} {placeholder} placeholders into the prompt, expected 1"
        )
    return text


def _conversation(turns: Sequence[Turn], texts: Sequence[str], *, with_image: bool) -> list[dict[str, Any]]:
    """The turns as chat templates take them, with an image before the user's first words if it is asked for."""
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    return [
        {
            "role": turn.role,
            "content": [
                *([{"type": "image"}] if with_image and number == first else []),
                {"type": "text", "text": text},
            ],
        }
        for number, (turn, text) in enumerate(zip(turns, texts, strict=True))
    ]


def chat_messages(prompt: Posed, *, placeholder: str, inline: str | None = None) -> list[dict[str, Any]]:
    """The turns as messages of a chat request, for a server that puts them into the chat template itself.

    The part `{"type": "image"}` stands where the user's words name the image, else before the user's first words.

    Args:
        prompt: as of `render_prompt`, which must be able to render it.
        placeholder: the family's image placeholder.
        inline: an image inside a text, placeholder included; None: the placeholder alone.
    """
    inline = inline or placeholder
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    written = [_with_inline(turn.text, placeholder, inline)[0] for turn in turns]
    messages = _conversation(turns, written, with_image=not any(inline in text for text in written))
    for message, text in zip(messages, written, strict=True):
        if inline in text:
            before, behind = text.split(inline)
            parts = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": behind}]
            message["content"] = [part for part in parts if part.get("text") != ""]
    return messages


def takes_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer is to add its special tokens to a rendered prompt: not where the template wrote them."""
    bos = tokenizer.bos_token
    return not (isinstance(bos, str) and text.startswith(bos))


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a rendered prompt. A beginning of sequence that the template wrote is not added again.

    Raises:
        UnusablePromptError: the tokenizer does not take the text.
    """
    add_special_tokens = add_special_tokens and takes_special_tokens(tokenizer, text)
    try:
        ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    except Exception as error:  # it raises many unrelated types about text it can't encode
        raise UnusablePromptError(f"the tokenizer can't take this prompt ({first_line(error)})") from error
    assert isinstance(ids, list), "one text gives one list of ids"
    return ids


def _with_inline(prompt: str, placeholder: str, inline: str) -> tuple[str, int]:
    """The prompt with each of its placeholders written as `inline`, and how many it has."""
    forms = sorted({GENERIC, placeholder, inline}, key=len, reverse=True)
    return re.subn("|".join(map(re.escape, forms)), lambda _: inline, prompt)
