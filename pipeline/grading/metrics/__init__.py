"""Every metric there is, by its name. One file a metric, one line here."""

from pipeline.grading.metrics.anls import ANLS
from pipeline.grading.metrics.bleu import BLEU
from pipeline.grading.metrics.cider_d import CIDER_D
from pipeline.grading.metrics.exact import EXACT
from pipeline.grading.metrics.gqa import GQA
from pipeline.grading.metrics.metric import Metric
from pipeline.grading.metrics.object_f1 import OBJECT_F1
from pipeline.grading.metrics.pope import POPE
from pipeline.grading.metrics.relaxed import RELAXED
from pipeline.grading.metrics.rouge_l import ROUGE_L
from pipeline.grading.metrics.vqa import TEXTVQA, VQA

_ALL = (EXACT, VQA, TEXTVQA, GQA, POPE, ANLS, RELAXED, OBJECT_F1, BLEU, ROUGE_L, CIDER_D)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
