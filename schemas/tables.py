"""One explicit Arrow schema per table. Every writer passes it, so all files of a table are identical in form."""

from schemas.answers import AnswerRow
from schemas.asked import AskedRow, FileRow
from schemas.columns import schema_of, struct_of
from schemas.grades import GradeRow
from schemas.samples import IndexRow, Prompt, Sample
from schemas.selections import ErrorRow, FeatureRow, PayloadRow, PromptRow, SelectionRow

SCHEMA_VERSION = 2

PROMPT_STRUCT = struct_of(Prompt)
SCAN = schema_of(Sample)
INDEX = schema_of(IndexRow)

SELECTIONS = schema_of(SelectionRow)
PROMPTS = schema_of(PromptRow)
ERRORS = schema_of(ErrorRow)
FEATURES = schema_of(FeatureRow)
PAYLOADS = schema_of(PayloadRow)

ASKED_FILE = schema_of(FileRow)
ASKED = schema_of(AskedRow)

ANSWERS = schema_of(AnswerRow)
GRADES = schema_of(GradeRow)
