"""What tasks.py refuses: runs in lmms-eval's environment, reads cases as JSON and prints what is said of each."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "lmms_eval"))

from exchange import Refusal
from tasks import load_task, quiet, requests_of


def said(case: dict[str, str]) -> str:
    """What is said of one case; nothing if it is exported."""
    try:
        task = load_task(case["task"], case.get("include_path"), None)
        for _ in requests_of(task, case.get("references"), None):
            pass
    except Refusal as refusal:
        return str(refusal)
    return ""


if __name__ == "__main__":
    quiet()
    print(json.dumps({name: said(case) for name, case in json.load(sys.stdin).items()}))
