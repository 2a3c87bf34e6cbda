"""Training from slide labels.

``fit`` runs ``phases`` in ``steps``; ``attention`` and ``distillation`` are the phase of attention.
``setup`` is constant, ``learner`` changes, and ``progress`` is stored. ``validation`` evaluates a network,
``diagnosis`` explains metrics, ``restarts`` trains again, ``processes`` joins torchrun's, and ``baselines``
trains other networks. Other packages import from ``fit``, ``diagnosis``,
``restarts``, ``processes``, ``validation`` and ``baselines``.
"""
