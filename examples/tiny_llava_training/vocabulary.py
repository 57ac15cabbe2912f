"""The word list of the bundled model."""

from scenes import COLORS, KINDS, NUMBERS

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID, IMAGE_ID = range(len(SPECIAL_TOKENS))
_PLAIN_WORDS = (
    "what which color shape digit is are the a an there how many shown objects in of left right above below "
    "describe this image picture yes no and on to from with it you do see number mark sign user assistant"
)
VOCABULARY = (
    *SPECIAL_TOKENS,
    *(":", "?", ".", ","),
    *sorted({*_PLAIN_WORDS.split(), *COLORS, *NUMBERS, *KINDS, *(f"{kind}s" for kind in KINDS)}),
)
TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}
