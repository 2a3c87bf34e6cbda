"""Learning from labels of slides.

``fit`` is the loop, ``phases`` says which parts learn when, ``distillation`` teaches attention,
``validation`` scores the slides set aside, ``diagnosis`` says what metrics mean, ``restarts`` trains again,
``processes`` are those of torchrun, and ``baselines`` has what is trained otherwise.
"""
