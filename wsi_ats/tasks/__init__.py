"""Tasks: labels, targets, losses, scores and metrics, with one file for each kind of prediction.

``base`` lists what a task must give; ``classification``, ``multilabel``, ``regression`` and ``survival`` give
it, and ``registry`` finds them by name. ``targets`` describes the target of one model. Shared by the tasks:
``labels`` (text to numbers), ``evaluation`` (areas under curves, intervals, the table of metrics),
``curves``, ``concordance`` and ``panels`` (values for plots); ``cases`` pools the slides of a case, and
``trainable`` compares a task with the settings. Nothing here imports torch before a loss is computed.
"""
