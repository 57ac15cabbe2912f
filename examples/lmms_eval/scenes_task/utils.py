"""What the two tasks of this folder call, as tasks of lmms-eval have it."""


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs):
    before, after = (lmms_eval_specific_kwargs[name] for name in ("pre_prompt", "post_prompt"))
    return f"{before}{doc['question']}{after}"


def process_yes_or_no(doc, results):
    said, right = results[0].strip().lower(), doc["answer"].strip().lower()
    result = {"question_id": doc["question_id"], "score": float(said == right), "said": said, "right": right}
    return dict.fromkeys(("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score"), result)


def accuracy(results):
    return sum(result["score"] for result in results) / len(results)


def precision(results):
    return _share_right([result for result in results if result["said"] == "yes"])


def recall(results):
    return _share_right([result for result in results if result["right"] == "yes"])


def f1(results):
    both = precision(results), recall(results)
    return 2 * both[0] * both[1] / sum(both) if sum(both) else 0.0


def _share_right(results):
    return sum(result["score"] for result in results) / len(results) if results else 0.0
