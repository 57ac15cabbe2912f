"""From a question to the token ids that every engine poses."""

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question
from pipeline.errors import UserError
from pipeline.families.base import Posed, Prompter, Turn, UnusablePromptError


def prompt_ids(prompter: Prompter, question: Question, decoding: Decoding) -> list[int]:
    """The token ids of the full prompt, with an image token for every row of the image.

    Raises:
        UnusablePromptError: it can't be posed, or is longer than what the model was made for.
    """
    if left_out := _system_left_out(prompter, question.prompt):  # of `decoding`, the job has seen to it: check_system
        raise UnusablePromptError(f"the checkpoint's chat template leaves out what the system says: {left_out[:60]!r}")
    token_ids = prompter.token_ids(with_system(question.prompt, decoding.system), question.image)
    if prompter.context is not None and len(token_ids) > prompter.context:
        raise UnusablePromptError(
            f"the prompt has {len(token_ids):,} tokens with its image, the model takes {prompter.context:,} "
            "(max_position_embeddings); shorten it, or answer with fewer --tokens"
        )
    return token_ids


def with_system(prompt: Posed, system: str | None) -> Posed:
    """The prompt behind what the system says; a conversation in which the system speaks stays as it is."""
    if system is None:
        return prompt
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else prompt
    return turns if any(turn.role == "system" for turn in turns) else (Turn("system", system), *turns)


def _system_left_out(prompter: Prompter, prompt: Posed) -> str | None:
    """What the system says in a conversation and the rendered prompt does not hold."""
    said = () if isinstance(prompt, str) else [turn.text.strip() for turn in prompt if turn.role == "system"]
    if not any(said):
        return None
    text = prompter.render(prompt)
    return next((words for words in said if words not in text), None)


def check_system(prompter: Prompter, model: str, system: str) -> None:
    """Refuse what the system says where the checkpoint's chat template has no place for it.

    Args:
        prompter: of the checkpoint.
        model: its name, as the user gave it.
        system: the text of `--system`.

    Raises:
        UserError: the template refuses it or leaves it out, or there is no template.
    """
    why = "leaves out what it says"
    try:
        if _system_left_out(prompter, with_system("x", system)) is None:
            return
    except UnusablePromptError as error:
        why = f"refuses it ({error})"
    if not prompter.tokenizer.chat_template:
        why = "is missing"
    raise UserError(
        f"--system: the chat template of --model {model}, which would have to hold a system turn, {why}; leave the "
        "option out, and say it in the prompts"
    )
