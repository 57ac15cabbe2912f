"""What tasks.py refuses: runs in lmms-eval's environment, reads cases as JSON and prints what is said of each."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "lmms_eval"))

from exchange import Export, Exported, Refusal
from tasks import grade, load_task, quiet, requests_of


def said(case: dict[str, Any]) -> str:
    """What is said of one case; nothing if it is exported, and graded where that is asked for."""
    try:
        task = load_task(case["task"], case.get("include_path"), None)
        requests = list(requests_of(task, case.get("references"), case.get("limit")))
        if "grade" in case:
            prompts = {
                str(one.doc_id): Exported(
                    str(one.doc_id), one.doc_id, one.prompt, tuple(case["grade"].get("references", one.references)), ""
                )
                for one in requests
            }
            documents = case["grade"].get("documents", len(requests))
            export = Export({"task": case["task"], "documents": documents, "references": None}, prompts)
            grade(task, export, dict.fromkeys(prompts, "yes"), Path(tempfile.gettempdir()))
    except Refusal as refusal:
        return str(refusal)
    return ""


if __name__ == "__main__":
    quiet()
    print(json.dumps({name: said(case) for name, case in json.load(sys.stdin).items()}))
