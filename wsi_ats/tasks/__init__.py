"""What is predicted: labels, targets, scores and the metrics of each task.

``targets`` says how a label is written and what the numbers of a network mean, ``cases`` pools the slides of
a case, ``evaluation``, ``curves`` and ``concordance`` compare scores with labels.
"""
