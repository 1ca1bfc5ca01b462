"""What an adapter is trained to make small: functions of predictions, targets and context, one file each.

`LoRATrainer(model, loss=function)` takes any of them, or one of a person's own.
"""

from neuralforge.training.losses.context import Loss, LossContext
from neuralforge.training.losses.cross_entropy import cross_entropy
from neuralforge.training.losses.label_smoothing import LabelSmoothing
from neuralforge.training.losses.style import StyleConsistent, measure_style_consistency
from neuralforge.training.losses.syntax import SyntaxPenalised, check_syntax_errors

__all__ = [
    "LabelSmoothing",
    "Loss",
    "LossContext",
    "StyleConsistent",
    "SyntaxPenalised",
    "check_syntax_errors",
    "cross_entropy",
    "measure_style_consistency",
]
