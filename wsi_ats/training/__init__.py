"""Learning from labels of slides.

``fit`` runs ``phases``, ``epochs`` and ``steps``; ``attention`` and ``distillation`` are the phase of
attention. ``setup`` is constant, ``learner`` changes, and ``progress`` is stored. ``validation`` and
``metrics`` judge a network, ``diagnosis`` explains metrics, ``restarts`` trains again, ``processes`` are
those of torchrun, and ``baselines`` trains other networks. Other rooms import from ``fit``, ``diagnosis``,
``restarts``, ``processes``, ``validation`` and ``baselines``.
"""
